//! Java, Maven, and the jars that Maven fetches.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::Options;
use crate::host::{cache_dir, install_packages, is_there, run};

const SPARK: &str = include_str!("../../../cluster/spark/pom.xml");
const KAFKA: &str = include_str!("../../../cluster/kafka/pom.xml");
const KAFKA_LOGGING: &str = include_str!("../../../cluster/kafka/log4j2.xml");
const HDFS: &str = include_str!("../../../cluster/hdfs/pom.xml");
/// What Kafka 4 asks for.
const JAVA: u32 = 17;

/// Folders of jars, by what they are for.
#[derive(Debug)]
pub struct Artifacts {
    kafka: PathBuf,
    hdfs: PathBuf,
}

impl Artifacts {
    /// Installs what `options` needs and what is not there yet; the rest stays as it is.
    pub fn install(options: Options) -> Result<Self> {
        let (cache, _lock) = open_cache()?;
        let kafka = cache.join(versioned("kafka", KAFKA));
        let hdfs = cache.join(versioned("hdfs", HDFS));
        if options.brokers > 0 {
            fetch(KAFKA, &kafka)?;
            std::fs::write(kafka.join("log4j2.xml"), KAFKA_LOGGING).context("write log4j2.xml")?;
        }
        if options.datanodes > 0 {
            fetch(HDFS, &hdfs)?;
        }
        Ok(Self { kafka, hdfs })
    }

    /// Kafka's jars in `libs/`, and `log4j2.xml`.
    pub(super) fn kafka(&self) -> &Path {
        &self.kafka
    }

    /// Hadoop's jars in `libs/`.
    pub(super) fn hdfs(&self) -> &Path {
        &self.hdfs
    }
}

/// The folder of the jars with which Spark reads Delta tables; installs them if they are not there yet.
pub fn spark_jars() -> Result<PathBuf> {
    let (cache, _lock) = open_cache()?;
    let spark = cache.join(versioned("spark", SPARK));
    fetch(SPARK, &spark)?;
    Ok(spark.join("libs"))
}

/// The folder of all jars, locked: of two test runs at once on a new machine the second waits for the first.
fn open_cache() -> Result<(PathBuf, File)> {
    let cache = cache_dir()?.join("jars");
    std::fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let lock = File::create(cache.join("lock")).context("create the lock of the jars")?;
    lock.lock().context("lock the jars")?;
    install_java()?;
    Ok((cache, lock))
}

/// Copies what `pom` depends on to `dir/libs`, unless it is there.
fn fetch(pom: &str, dir: &Path) -> Result<()> {
    if dir.try_exists().with_context(|| format!("look for {}", dir.display()))? {
        return Ok(());
    }
    eprintln!("fetching the jars of {} by Maven", dir.display());
    let unfinished = dir.with_extension("unfinished");
    std::fs::create_dir_all(&unfinished).with_context(|| format!("create {}", unfinished.display()))?;
    std::fs::write(unfinished.join("pom.xml"), pom).context("write pom.xml")?;
    run(Command::new("mvn")
        .args([
            "-q",
            "-B",
            "-Dstyle.color=never",
            "dependency:copy-dependencies",
            "-DincludeScope=runtime",
            "-DoutputDirectory=libs",
        ])
        .current_dir(&unfinished)
        .stdin(Stdio::null())
        .stdout(std::io::stderr()))?;
    std::fs::rename(&unfinished, dir).with_context(|| format!("rename to {}", dir.display()))
}

/// A folder's name that another version of the pom does not share.
fn versioned(name: &str, pom: &str) -> String {
    // FNV-1a: the same for ever, unlike the standard library's hashers.
    let hash = pom.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{name}-{hash:08x}")
}

/// Makes sure of `java` (17 or newer) and `mvn`, from Debian's packages if they are not there.
fn install_java() -> Result<()> {
    let missing: Vec<&str> = [("java", "openjdk-17-jre-headless"), ("mvn", "maven")]
        .into_iter()
        .filter(|(command, _)| !is_there(command))
        .map(|(_, package)| package)
        .collect();
    if !missing.is_empty() {
        install_packages(&format!("Java {JAVA} and Maven are needed for real Kafka and HDFS"), &missing)?;
    }
    let output = Command::new("java").arg("-version").output().context("start java -version")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let version = java_version(&said).with_context(|| format!("cannot read a version from `java -version`: {said}"))?;
    ensure!(version >= JAVA, "Java {JAVA} or newer is needed, `java` on the PATH is {version}: install a newer one");
    Ok(())
}

/// The feature version in what `java -version` says: `17` of `openjdk version "17.0.15"`, `8` of `"1.8.0_392"`.
fn java_version(said: &str) -> Option<u32> {
    let mut numbers = said.split('"').nth(1)?.split(['.', '-', '_']).map(|n| n.parse().ok());
    match numbers.next()?? {
        1 => numbers.next()?,
        version => Some(version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_java_is_read_in_both_its_forms() {
        assert_eq!(java_version("openjdk version \"17.0.15\" 2025-04-15\n"), Some(17));
        assert_eq!(java_version("openjdk version \"21\" 2023-09-19\n"), Some(21));
        assert_eq!(java_version("openjdk version \"26-ea\" 2026-03-17\n"), Some(26));
        assert_eq!(java_version("java version \"1.8.0_392\"\n"), Some(8));
        assert_eq!(java_version("nothing\n"), None);
    }
}
