//! The files in `deploy/docker`, `deploy/kubernetes` and `deploy/systemd`: what they name agrees with the program, with the
//! configuration that they bring along, and with each other.

mod compose;
mod image;
mod kubernetes;
mod running;
mod systemd;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use watershed_shared::config::{Config, ConfigError};
use watershed_shared::testing::real_component;
use watershed_shared::view::Compiler;

const ROLES: [&str; 3] = ["batch", "speed", "serving"];
/// What stands for a secret, or for whatever else the files leave to the user.
const SECRET: &str = "a secret";
/// Of the native client of HDFS, and of the health check of the image: no configuration names them.
const OTHER_VARIABLES: [&str; 2] = ["HADOOP_USER_NAME", "WATERSHED_HEALTH_PORT"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

#[track_caller]
fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The Python that `cargo xtask test` sets up; `None` under plain `cargo test`.
fn python() -> Option<PathBuf> {
    real_component("WATERSHED_TEST_PYTHON").map(PathBuf::from)
}

/// A tool that the machine has or has not; without it this says what is left out.
fn tool(name: &str) -> Option<Command> {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", name]).output().expect("a shell");
    if !found.status.success() {
        println!("left out: {name} is not on this machine");
        return None;
    }
    Some(Command::new(name))
}

/// Runs `command`, which must succeed; answers what it printed, on both outputs.
#[track_caller]
fn succeeded(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    format!("{out}{err}")
}

/// The documents of a YAML file.
#[track_caller]
fn documents(python: &Path, file: &Path) -> Vec<Value> {
    const TO_JSON: &str = "import json, sys, yaml\n\
        print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1], encoding='utf-8')) if d is not None]))";
    let json = succeeded(Command::new(python).args(["-c", TO_JSON]).arg(file));
    serde_json::from_str(&json).expect("JSON")
}

/// The texts of a list.
#[track_caller]
fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    list.iter().map(|text| text.as_str().unwrap_or_else(|| panic!("no text: {text}"))).collect()
}

/// How one of the files starts a process.
#[derive(Debug)]
struct Process {
    /// Which one, for messages.
    place: String,
    role: String,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    /// Where the process finds its configuration, and what stands there.
    config_file: String,
    config_text: String,
    /// Folders that the process may write to, and that are there before it starts.
    writable: Vec<String>,
    /// Where its health is asked for.
    health: Vec<Probe>,
}

/// An HTTP request that must succeed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Probe {
    path: String,
    port: u16,
}

impl Process {
    /// The configuration, as the program reads it in this environment.
    #[track_caller]
    fn config(&self) -> Config {
        let asked = RefCell::new(BTreeSet::new());
        let env = |name: &str| {
            asked.borrow_mut().insert(name.to_owned());
            self.env.get(name).cloned()
        };
        let folder = Path::new(&self.config_file).parent().expect("a folder");
        let config = Config::parse(&self.config_text, folder, &env).unwrap_or_else(|errors| {
            let errors: Vec<String> = errors.iter().map(ConfigError::to_string).collect();
            panic!("{}: {}", self.place, errors.join("\n"))
        });
        let asked = asked.into_inner();
        for name in self.env.keys() {
            let known = asked.contains(name) || OTHER_VARIABLES.contains(&name.as_str());
            assert!(known, "{}: the configuration does not ask for {name}", self.place);
        }
        config
    }

    /// Where this role answers over HTTP.
    fn listen(&self) -> SocketAddr {
        let config = self.config();
        if self.role == "speed" { config.speed.listen } else { config.http.listen }
    }

    /// What holds wherever a role is a process of its own.
    #[track_caller]
    fn check(&self) {
        let place = &self.place;
        assert_eq!(self.args, ["up", "--role", &self.role, "-c", &self.config_file], "{place}");
        let config = self.config();
        let compiler = Compiler::new(&config.streams, &BTreeMap::new()).expect("streams");
        assert!(!config.views.is_empty(), "{place}: an example of a view");
        for view in config.views.values() {
            compiler.compile(view).unwrap_or_else(|error| panic!("{place}: view `{}`: {error:?}", view.name));
        }
        // Without these `--role` refuses to run.
        assert!(config.kafka.is_some() && config.storage_named, "{place}");
        assert_eq!(config.speed.token.as_deref(), Some(SECRET), "{place}");
        let data_dir = config.data_dir.to_str().expect("UTF-8");
        assert!(self.writable.iter().any(|folder| folder == data_dir), "{place}: nothing lies at {data_dir}");
        assert_eq!(config.storage_url.scheme(), "hdfs", "{place}");
        assert!(self.env.contains_key("HADOOP_USER_NAME"), "{place}: as whom does it write to HDFS?");
        for probe in &self.health {
            assert_eq!(probe.port, self.listen().port(), "{place}: {probe:?}");
        }
        let advertised = config.speed.advertise.expect("others reach a worker by a name");
        let (_, port) = advertised.rsplit_once(':').expect("HOST:PORT");
        assert_eq!(port, config.speed.listen.port().to_string(), "{place}: {advertised}");
    }
}
