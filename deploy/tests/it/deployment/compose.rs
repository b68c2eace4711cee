//! `deploy/docker/compose.yaml`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Process, ROLES, SECRET, documents, image, python, read, root, texts};

/// What may stand at a service; an unknown key would be an error of Compose.
const KEYS: [&str; 17] = [
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "environment",
    "healthcheck",
    "hostname",
    "image",
    "ports",
    "pull_policy",
    "read_only",
    "restart",
    "security_opt",
    "stop_grace_period",
    "tmpfs",
    "user",
    "volumes",
];

fn folder() -> PathBuf {
    root().join("deploy/docker")
}

fn file(python: &Path) -> Value {
    documents(python, &folder().join("compose.yaml")).remove(0)
}

/// The value of a variable; what the user sets is [`SECRET`].
fn value(text: &Value) -> String {
    match text.as_str() {
        Some(text) if text.starts_with("${WATERSHED_SPEED_TOKEN:?") => SECRET.to_owned(),
        Some(text) => {
            assert!(!text.contains('$'), "{text}");
            text.to_owned()
        }
        None => panic!("a variable is a text: {text}"),
    }
}

fn object<'v>(value: &'v Value, what: &str) -> &'v Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("{what}: {value}"))
}

/// `SOURCE:TARGET[:ro]` of a service.
fn volumes(service: &Value) -> Vec<(&str, &str, bool)> {
    let volumes = texts(&service["volumes"]).into_iter().map(|text| {
        let parts: Vec<&str> = text.split(':').collect();
        assert!(parts.len() == 2 || parts[2..] == ["ro"], "{text}");
        (parts[0], parts[1], parts.len() == 3)
    });
    volumes.collect()
}

/// How the file starts `role`.
pub(super) fn process(python: &Path, role: &str) -> Process {
    let file = file(python);
    let service = &file["services"][role];
    let env = object(&service["environment"], role).iter().map(|(name, text)| (name.clone(), value(text)));
    let env: BTreeMap<String, String> = env.collect();
    let volumes = volumes(service);
    let (source, config_file, read_only) =
        volumes.iter().find(|(source, ..)| source.starts_with("./")).expect("a file");
    assert!(*read_only, "{role}");
    let writable = volumes.iter().filter(|(source, _, read_only)| !source.starts_with("./") && !read_only);
    Process {
        place: format!("compose.yaml, {role}"),
        role: role.to_owned(),
        args: texts(&service["command"]).into_iter().map(str::to_owned).collect(),
        health: vec![image::health(env.get("WATERSHED_HEALTH_PORT").map(String::as_str))],
        env,
        config_file: (*config_file).to_owned(),
        config_text: read(&folder().join(source)),
        writable: writable.map(|(_, target, _)| (*target).to_owned()).collect(),
    }
}

#[test]
fn services_know_their_keys_volumes_and_each_other() {
    let Some(python) = python() else { return };
    let file = file(&python);
    let services = object(&file["services"], "services");
    let mut used = BTreeSet::new();
    for (name, service) in services {
        for key in object(service, name).keys() {
            assert!(KEYS.contains(&key.as_str()), "{name}: {key}");
        }
        if service.get("volumes").is_some() {
            for (source, _, _) in volumes(service).iter().filter(|(source, ..)| !source.starts_with("./")) {
                assert!(used.insert((*source).to_owned()), "{name}: {source} is another's");
            }
        }
        let healthy = |other: &Value| other.get("healthcheck").is_some() || other["image"] == "watershed:0.1.0";
        match service.get("depends_on") {
            None => {}
            Some(Value::Array(others)) => {
                assert!(others.iter().all(|other| services.contains_key(other.as_str().expect("a name"))), "{name}");
            }
            Some(others) => {
                for (other, needed) in object(others, name) {
                    let found = services.get(other).unwrap_or_else(|| panic!("{name}: there is no {other}"));
                    match needed["condition"].as_str() {
                        Some("service_healthy") => assert!(healthy(found), "{name}: who knows how {other} does?"),
                        Some("service_completed_successfully") => assert_eq!(found["restart"], "on-failure", "{other}"),
                        Some("service_started") => {}
                        condition => panic!("{name}: {condition:?}"),
                    }
                }
            }
        }
    }
    let declared: BTreeSet<String> = object(&file["volumes"], "volumes").keys().cloned().collect();
    assert_eq!(used, declared);
}

#[test]
fn roles_agree_with_their_configuration() {
    let Some(python) = python() else { return };
    let file = file(&python);
    let mut built = Vec::new();
    for role in ROLES {
        let process = process(&python, role);
        process.check();
        let service = &file["services"][role];
        assert_eq!(service["image"], "watershed:0.1.0");
        match service.get("build") {
            Some(build) => {
                let context = folder().join(build["context"].as_str().expect("a folder")).canonicalize();
                let dockerfile = root().join(build["dockerfile"].as_str().expect("a file"));
                assert!(context.expect("a folder") == root() && dockerfile.is_file(), "{build}");
                built.push(role);
            }
            None => assert_eq!(service["pull_policy"], "never", "{role}: the image is in no registry"),
        }
        assert_eq!(
            image::last("VOLUME"),
            process.config().data_dir.display().to_string(),
            "it belongs to the image's user"
        );
        assert_eq!(service["read_only"], true);
    }
    assert_eq!(built.len(), 1);
    let config = process(&python, "speed").config();
    let host = file["services"]["speed"]["hostname"].as_str().expect("a name");
    assert_eq!(config.speed.advertise, Some(format!("{host}:{}", config.speed.listen.port())));
    let published = config.http.listen.port();
    assert_eq!(texts(&file["services"]["serving"]["ports"]), [format!("127.0.0.1:{published}:{published}")]);
}

#[test]
fn kafka_and_hdfs_are_where_the_configuration_looks() {
    let Some(python) = python() else { return };
    let services = &file(&python)["services"];
    let process = process(&python, "batch");
    let config = process.config();
    let brokers = &config.kafka.expect("a Kafka").properties["bootstrap.servers"];
    let kafka = &services["kafka"]["environment"];
    let advertised = kafka["KAFKA_ADVERTISED_LISTENERS"].as_str().expect("listeners");
    assert!(advertised.split(',').any(|listener| listener == format!("PLAINTEXT://{brokers}")), "{advertised}");
    let (host, port) = brokers.rsplit_once(':').expect("HOST:PORT");
    assert!(services.get(host).is_some(), "{host}");
    let listeners = kafka["KAFKA_LISTENERS"].as_str().expect("listeners");
    assert!(listeners.split(',').any(|listener| listener == format!("PLAINTEXT://:{port}")), "{listeners}");
    assert!(texts(&services["kafka"]["healthcheck"]["test"]).contains(&brokers.as_str()));
    let logs = kafka["KAFKA_LOG_DIRS"].as_str().expect("a folder");
    assert!(volumes(&services["kafka"]).iter().any(|(_, target, _)| *target == logs), "{logs}");
    // One broker holds no second replica.
    assert!(config.streams.values().all(|stream| stream.replication == 1));

    let url = config.storage_url;
    let (host, port) = (url.host_str().expect("a host"), url.port().expect("a port"));
    for name in ["namenode", "datanode", "hdfs-init"] {
        let hdfs = &services[name]["environment"];
        assert_eq!(hdfs["CORE-SITE.XML_fs.defaultFS"], format!("hdfs://{host}:{port}"), "{name}");
        for folder in ["HDFS-SITE.XML_dfs.namenode.name.dir", "HDFS-SITE.XML_dfs.datanode.data.dir"] {
            assert!(hdfs[folder].as_str().is_some_and(|folder| folder.starts_with("file:///hadoop/")), "{name}");
        }
    }
    assert_eq!(services["namenode"]["hostname"], host);
    for name in ["namenode", "datanode"] {
        assert_eq!(volumes(&services[name]), [(format!("{name}-data").as_str(), "/hadoop", false)]);
    }
    let init = texts(&services["hdfs-init"]["command"])[2];
    let (folder, user) = (url.path().trim_end_matches('/'), &process.env["HADOOP_USER_NAME"]);
    let made = format!("hdfs dfs -mkdir -p {folder} && hdfs dfs -chown {user} {folder}");
    assert!(init.ends_with(&made), "{init}\n{made}");
}
