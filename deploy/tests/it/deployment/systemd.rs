//! `deploy/systemd`.

use std::path::PathBuf;

use super::{Process, ROLES, SECRET, read, root, succeeded, tool};
use crate::program::watershed;

const UNIT: &str = "watershed@.service";

fn folder() -> PathBuf {
    root().join("deploy/systemd")
}

/// The values of `key`, with the specifiers of the instance `role` filled in.
fn values(key: &str, role: &str) -> Vec<String> {
    let unit = read(&folder().join(UNIT));
    let values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.map(|value| value.replace("%i", role).replace("%H", "machine")).collect()
}

#[track_caller]
fn value(key: &str, role: &str) -> String {
    let values = values(key, role);
    assert_eq!(values.len(), 1, "{key}: {values:?}");
    values[0].clone()
}

fn variables(text: &str) -> impl Iterator<Item = (String, String)> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| {
        let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("not NAME=VALUE: {line}"));
        (name.to_owned(), value.to_owned())
    })
}

/// How the unit starts `role`.
pub(super) fn process(role: &str) -> Process {
    let command = value("ExecStart", role);
    let mut words = command.split_whitespace().map(str::to_owned);
    assert_eq!(words.next().as_deref(), Some("/usr/local/bin/watershed"));
    let state = format!("/var/lib/{}", value("StateDirectory", role));
    let mut env = std::collections::BTreeMap::from([("STATE_DIRECTORY".to_owned(), state.clone())]);
    env.extend(values("Environment", role).iter().flat_map(|text| variables(text).collect::<Vec<_>>()));
    for file in values("EnvironmentFile", role) {
        match file.strip_prefix("/etc/watershed/").expect("the folder of the configuration") {
            // The user writes it.
            "secret.env" => drop(env.insert("WATERSHED_SPEED_TOKEN".to_owned(), SECRET.to_owned())),
            file => env.extend(variables(&read(&folder().join(file)))),
        }
    }
    Process {
        place: format!("{UNIT}, {role}"),
        role: role.to_owned(),
        args: words.collect(),
        env,
        config_file: "/etc/watershed/watershed.toml".to_owned(),
        config_text: read(&folder().join("watershed.toml")),
        writable: vec![state],
        health: Vec::new(),
    }
}

#[test]
fn the_unit_agrees_with_its_configuration() {
    for role in ROLES {
        let process = process(role);
        process.check();
        let advertised = process.config().speed.advertise.expect("an address");
        assert!(advertised.starts_with("machine:"), "{advertised}");
    }
    // All on one machine.
    let addresses = ROLES.map(|role| process(role).listen());
    assert!(addresses[0] != addresses[1] && addresses[1] != addresses[2] && addresses[0] != addresses[2]);
}

#[test]
fn a_wrong_configuration_is_not_tried_again() {
    let status: i32 = value("RestartPreventExitStatus", "batch").parse().expect("a number");
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("watershed.toml"), "[http]\nlisen = \"x\"\n").expect("a file");
    let ended = watershed(dir.path(), &["up", "--role", "batch", "-c", "watershed.toml"], b"");
    assert!(ended.stderr.contains("unknown key `lisen`"), "{}", ended.stderr);
    assert_eq!(ended.status, status);
}

#[test]
fn systemd_understands_the_unit() {
    // With the program where it is now.
    let dir = tempfile::tempdir().expect("a folder");
    let unit = read(&folder().join(UNIT)).replace("/usr/local/bin/watershed", env!("CARGO_BIN_EXE_watershed"));
    std::fs::write(dir.path().join(UNIT), unit).expect("a file");
    for role in ROLES {
        let file = dir.path().join(format!("watershed@{role}.service"));
        std::os::unix::fs::symlink(UNIT, &file).expect("a link");
        let Some(mut analyze) = tool("systemd-analyze") else { return };
        let said = succeeded(analyze.arg("verify").arg(&file));
        assert!(!said.contains("watershed@"), "{said}");
    }
    let Some(mut analyze) = tool("systemd-analyze") else { return };
    // From 0 to 100: how much a process under it can do to the machine. 20 is what systemd calls OK.
    analyze.args(["security", "--offline=true", "--threshold=20"]).arg(dir.path().join(UNIT));
    succeeded(&mut analyze);
}
