//! Kafka's listener for SASL over TLS: its keys, its users, and the file that tells tests of both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::ports;

/// How a client gets in. Each user has the same password with PLAIN and with SCRAM-SHA-512.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Secured {
    /// `host:port,…`
    pub bootstrap_servers: String,
    /// The certificate that the brokers' are signed by, as PEM.
    pub ca: PathBuf,
    /// [`Self::FULL`] may do everything, [`Self::LIMITED`] what it is granted by [`super::Acl`]s.
    pub passwords: BTreeMap<String, String>,
}

impl Secured {
    /// The user who may do everything.
    pub const FULL: &str = "full";
    /// The user who may do nothing but what it is granted.
    pub const LIMITED: &str = "limited";

    /// What `file` says, that of `WATERSHED_TEST_KAFKA_SECURED`.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))
    }

    pub(super) fn write(&self, file: &Path) -> Result<()> {
        std::fs::write(file, serde_json::to_string_pretty(self)?).with_context(|| format!("write {}", file.display()))
    }
}

/// A key of all brokers with its certificate, and the users' passwords.
#[derive(Debug)]
pub(super) struct Keys {
    store: PathBuf,
    store_password: String,
    pub(super) ca: PathBuf,
    pub(super) passwords: BTreeMap<String, String>,
}

impl Keys {
    /// Makes them in `dir`.
    pub(super) fn make(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let (store, ca) = (dir.join("keys.p12"), dir.join("ca.pem"));
        let password = || format!("{:016x}", ports::random());
        let keys = Self {
            store_password: password(),
            passwords: [Secured::FULL, Secured::LIMITED].map(|user| (user.to_owned(), password())).into(),
            store,
            ca,
        };
        // Of an attempt whose port was taken.
        drop(std::fs::remove_file(&keys.store));
        keys.keytool(&[
            "-genkeypair",
            "-dname",
            "CN=watershed test",
            "-ext",
            "san=ip:127.0.0.1,dns:localhost",
            "-keyalg",
            "EC",
            "-groupname",
            "secp256r1",
            "-validity",
            "3650",
            "-storetype",
            "PKCS12",
        ])?;
        keys.keytool(&["-exportcert", "-rfc", "-file", &keys.ca.display().to_string()])?;
        Ok(keys)
    }

    fn keytool(&self, arguments: &[&str]) -> Result<()> {
        let mut keytool = Command::new("keytool");
        keytool.arg(arguments[0]).args(["-alias", "broker", "-storepass:env", "STORE_PASSWORD", "-keystore"]);
        keytool.arg(&self.store).args(&arguments[1..]).env("STORE_PASSWORD", &self.store_password);
        let output = keytool.stdin(Stdio::null()).output().context("start keytool, which comes with Java")?;
        let said = [output.stdout, output.stderr].concat();
        ensure!(
            output.status.success(),
            "{keytool:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&said)
        );
        Ok(())
    }

    /// What a broker's properties say besides its listeners.
    pub(super) fn properties(&self) -> String {
        let Self { store, store_password, passwords, .. } = self;
        let users: String = passwords.iter().map(|(user, password)| format!(" user_{user}=\"{password}\"")).collect();
        let login = "org.apache.kafka.common.security";
        format!(
            "ssl.keystore.type=PKCS12
ssl.keystore.location={store}
ssl.keystore.password={store_password}
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config={login}.plain.PlainLoginModule required{users};
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={login}.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:{full}
",
            store = store.display(),
            full = Secured::FULL,
        )
    }

    /// What formatting a broker's data takes: SCRAM's users are records of the cluster.
    pub(super) fn format_arguments(&self) -> Vec<String> {
        let user = |(user, password): (&String, &String)| {
            ["--add-scram".to_owned(), format!("SCRAM-SHA-512=[name={user},password={password}]")]
        };
        self.passwords.iter().flat_map(user).collect()
    }
}
