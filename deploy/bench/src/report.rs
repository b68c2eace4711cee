//! What a run prints, and the sections of `deploy/bench/README.md` that it replaces.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// One line of a benchmark's table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) figure: String,
    pub(crate) baseline: String,
    /// Of the figure to the baseline, within each run.
    pub(crate) ratio: String,
    pub(crate) aim: String,
    pub(crate) cpu_seconds: String,
    pub(crate) memory: String,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, figure: impl Into<String>) -> Self {
        let none = || "–".to_owned();
        Self {
            what: what.into(),
            figure: figure.into(),
            baseline: none(),
            ratio: none(),
            aim: none(),
            cpu_seconds: none(),
            memory: none(),
        }
    }
}

/// One benchmark's table, with what must be known to read it.
pub(crate) fn table(about: &str, rows: &[Row]) -> String {
    let mut text = format!("{about}\n\n");
    let mut line = |cells: [&str; 7]| writeln!(text, "| {} |", cells.join(" | ")).expect("a text takes everything");
    line(["what", "figure", "baseline", "ratio", "aim", "CPU-s per million", "memory, MiB"]);
    line(["---"; 7]);
    for row in rows {
        let Row { what, figure, baseline, ratio, aim, cpu_seconds, memory } = row;
        line([what, figure, baseline, ratio, aim, cpu_seconds, memory]);
    }
    text
}

/// Machine, versions and commit, in one line.
pub(crate) fn machine(kafka: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown CPU").to_owned();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    let gib = kib.unwrap_or(0.0) / f64::from(1 << 20);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    let dirty = if output("git", &["status", "--porcelain"]).is_empty() { "" } else { " with changes" };
    format!(
        "{} UTC, commit {}{dirty}; {model}, {cores} cores, {gib:.0} GiB, Linux {}, load at the start {load}; {}; {}; log: {kafka}",
        watershed_shared::clock::now().format("%Y-%m-%d %H:%M"),
        output("git", &["rev-parse", "--short", "HEAD"]),
        output("uname", &["-r"]),
        output("rustc", &["--version"]),
        librdkafka(),
    )
}

fn librdkafka() -> String {
    format!("librdkafka {}", rdkafka::util::get_rdkafka_version().1)
}

/// What a command prints; nothing if it is not there.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

/// Puts `text` between the markers of benchmark `name` in `readme`.
///
/// # Errors
/// If the file cannot be read or written, or has no such markers.
pub(crate) fn write_section(readme: &Path, name: &str, text: &str) -> Result<()> {
    let old = std::fs::read_to_string(readme).with_context(|| format!("read {}", readme.display()))?;
    let new = replace_section(&old, name, text)
        .with_context(|| format!("{} has no markers of benchmark `{name}`", readme.display()))?;
    std::fs::write(readme, new).with_context(|| format!("write {}", readme.display()))
}

fn replace_section(old: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
    let start = old.find(&begin)? + begin.len();
    let stop = start + old[start..].find(&end)?;
    Some(format!("{}{text}{}", &old[..start], &old[stop..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_takes_the_place_of_the_old_one_and_of_nothing_else() {
        let old = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n<!-- y: begin -->\n<!-- y: end -->\n";
        let new = replace_section(old, "x", "new\n").unwrap();
        assert_eq!(new, old.replace("old", "new"));
        assert_eq!(replace_section(old, "z", "new"), None);
    }

    #[test]
    fn a_table_has_a_cell_for_every_column() {
        let text = table("about", &[Row::new("a", "1")]);
        let cells: Vec<usize> = text.lines().skip(2).map(|line| line.matches('|').count()).collect();
        assert_eq!(cells, [8, 8, 8]);
    }
}
