//! `deploy/kubernetes`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use watershed_shared::config::Claim;

use super::{Probe, Process, ROLES, SECRET, documents, image, python, read, root, succeeded, texts, tool};

/// The oldest that the kustomization promises, and the newest whose schema the validator has.
const VERSIONS: [&str; 2] = ["1.32", "1.37"];
const POD_INDEX: &str = "metadata.labels['apps.kubernetes.io/pod-index']";

fn folder(name: &str) -> PathBuf {
    root().join("deploy/kubernetes").join(name)
}

/// Everything that the base names, and the file in which it stands.
fn resources(python: &Path) -> Vec<(PathBuf, Value)> {
    let kustomization = kustomization(python, "base");
    let files = texts(&kustomization["resources"]).into_iter().map(|file| folder("base").join(file));
    files.flat_map(|file| documents(python, &file).into_iter().map(move |document| (file.clone(), document))).collect()
}

fn kustomization(python: &Path, name: &str) -> Value {
    documents(python, &folder(name).join("kustomization.yaml")).remove(0)
}

/// The one resource of `kind` called `name`.
#[track_caller]
fn resource(resources: &[(PathBuf, Value)], kind: &str, name: &str) -> Value {
    let mut found = resources.iter().filter(|(_, r)| r["kind"] == kind && r["metadata"]["name"] == name);
    let (_, resource) = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
    assert!(found.next().is_none(), "two {kind} {name}");
    resource.clone()
}

fn workload(resources: &[(PathBuf, Value)], role: &str) -> Value {
    let kind = if role == "speed" { "StatefulSet" } else { "Deployment" };
    resource(resources, kind, &format!("watershed-{role}"))
}

fn labels(role: &str) -> Value {
    json!({ "app.kubernetes.io/name": "watershed", "app.kubernetes.io/component": role })
}

/// What `env` says in the first pod.
fn environment(env: &Value, role: &str) -> BTreeMap<String, String> {
    let variables = env.as_array().expect("a list").iter().map(|variable| {
        let name = variable["name"].as_str().expect("a name").to_owned();
        let from = &variable["valueFrom"];
        let value = match (variable["value"].as_str(), from["fieldRef"]["fieldPath"].as_str()) {
            (Some(value), None) => value.to_owned(),
            (None, Some("metadata.name")) => format!("watershed-{role}-0"),
            (None, Some(POD_INDEX)) => "0".to_owned(),
            (None, None) => {
                assert_eq!(from["secretKeyRef"], json!({ "name": "watershed-speed", "key": "token" }), "{name}");
                SECRET.to_owned()
            }
            _ => panic!("{variable}"),
        };
        (name, value)
    });
    variables.collect()
}

/// How the base starts `role`.
pub(super) fn process(python: &Path, role: &str) -> Process {
    let resources = resources(python);
    let workload = workload(&resources, role);
    let pod = &workload["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let mounts: BTreeMap<&str, &Value> = container["volumeMounts"]
        .as_array()
        .expect("mounts")
        .iter()
        .map(|mount| (mount["name"].as_str().expect("a name"), mount))
        .collect();
    let generator = &kustomization(python, "base")["configMapGenerator"][0];
    let file = texts(&generator["files"])[0];
    let config_file = format!("{}/{file}", mounts["config"]["mountPath"].as_str().expect("a folder"));
    let ports = container["ports"].as_array().expect("ports");
    let health = ["startupProbe", "livenessProbe", "readinessProbe"].map(|probe| {
        let get = &container[probe]["httpGet"];
        let port = ports.iter().find(|port| port["name"] == get["port"]).expect("a port of the container");
        let port = port["containerPort"].as_u64().and_then(|port| port.try_into().ok()).expect("a port");
        Probe { path: get["path"].as_str().expect("a path").to_owned(), port }
    });
    let writable = mounts.values().filter(|mount| mount["readOnly"] != true);
    Process {
        place: format!("kubernetes/base/{role}.yaml"),
        role: role.to_owned(),
        args: texts(&container["args"]).into_iter().map(str::to_owned).collect(),
        env: environment(&container["env"], role),
        config_file,
        config_text: read(&folder("base").join(file)),
        writable: writable.map(|mount| mount["mountPath"].as_str().expect("a folder").to_owned()).collect(),
        health: health.into(),
    }
}

/// Each of `files` against the schemas, in which an unknown field is an error.
#[track_caller]
fn validate(python: &Path, file: &Path, resources: usize) {
    for version in VERSIONS {
        let mut validate = Command::new(python);
        validate.args(["-m", "kubernetes_validate", "--strict", "-k", version]).arg(file);
        let said = succeeded(&mut validate);
        // Without a schema it only warns.
        assert_eq!(said.matches(" passed for resource ").count(), resources, "{}\n{said}", file.display());
    }
}

#[test]
fn manifests_fit_their_schemas() {
    let Some(python) = python() else { return };
    let resources = resources(&python);
    let files: BTreeSet<&PathBuf> = resources.iter().map(|(file, _)| file).collect();
    for file in files {
        validate(&python, file, resources.iter().filter(|(of, _)| of == file).count());
    }
    // What stands in the folder is also applied.
    let mut named: BTreeSet<String> =
        texts(&kustomization(&python, "base")["resources"]).into_iter().map(str::to_owned).collect();
    named.extend(["kustomization.yaml".to_owned(), "watershed.toml".to_owned()]);
    let there = std::fs::read_dir(folder("base")).expect("a folder");
    let there: BTreeSet<String> =
        there.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    assert_eq!(there, named);
}

#[test]
fn what_kustomize_makes_of_them_fits_too() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    // The base's resources and the ConfigMap.
    let expected = resources(&python).len() + 1;
    for name in ["base", "fixed-shards"] {
        let Some(mut kubectl) = tool("kubectl") else { return };
        let rendered = succeeded(kubectl.arg("kustomize").arg(folder(name)));
        let file = dir.path().join(format!("{name}.yaml"));
        std::fs::write(&file, rendered).expect("a file");
        validate(&python, &file, expected);
        let rendered: Vec<(PathBuf, Value)> =
            documents(&python, &file).into_iter().map(|document| (file.clone(), document)).collect();
        let speed = workload(&rendered, "speed");
        let env = speed["spec"]["template"]["spec"]["containers"][0]["env"].as_array().expect("a list").clone();
        let claims: Vec<Value> = env.into_iter().filter(|variable| variable["name"] == "WATERSHED_CLAIM").collect();
        let by_ordinal = json!({ "fieldRef": { "fieldPath": POD_INDEX } });
        let claim = if name == "base" { json!({ "value": "auto" }) } else { json!({ "valueFrom": by_ordinal }) };
        let mut expected = claim.as_object().expect("an object").clone();
        expected.insert("name".to_owned(), json!("WATERSHED_CLAIM"));
        assert_eq!(claims, [Value::Object(expected)], "{name}");
    }
}

#[test]
fn pods_agree_with_their_configuration() {
    let Some(python) = python() else { return };
    let resources = resources(&python);
    let kustomization = kustomization(&python, "base");
    assert_eq!(resource(&resources, "Namespace", "watershed")["metadata"]["name"], kustomization["namespace"]);
    let user: u64 = image::last("USER").split(':').next().and_then(|user| user.parse().ok()).expect("a number");
    for role in ROLES {
        let process = process(&python, role);
        process.check();
        let paths: Vec<&str> = process.health.iter().map(|probe| probe.path.as_str()).collect();
        assert_eq!(paths, ["/healthz", "/healthz", "/readyz"], "{role}");

        let workload = workload(&resources, role);
        let spec = &workload["spec"];
        assert_eq!(spec["selector"]["matchLabels"], labels(role));
        assert_eq!(spec["template"]["metadata"]["labels"], labels(role));
        let pod = &spec["template"]["spec"];
        assert_eq!(pod["containers"].as_array().map(Vec::len), Some(1));
        let container = &pod["containers"][0];
        assert_eq!(kustomization["images"][0]["name"], container["image"]);
        // SIGTERM, and what a build or the last micro-batch takes.
        let before_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap_or(0);
        assert!(pod["terminationGracePeriodSeconds"].as_u64().expect("a number") >= before_stop + 60, "{role}");

        // The image's user, who may write to the volumes and nowhere else.
        let security = &pod["securityContext"];
        assert_eq!((&security["runAsUser"], &security["fsGroup"]), (&json!(user), &json!(user)), "{role}");
        assert_eq!(security["runAsNonRoot"], true);
        let security = &container["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"], true, "{role}");
        assert_eq!(security["allowPrivilegeEscalation"], false, "{role}");
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{role}");
        assert!(process.writable.iter().any(|folder| folder == "/tmp"), "{role}");

        let names = |list: &Value| -> BTreeSet<String> {
            let list = list.as_array().into_iter().flatten();
            list.map(|item| {
                let name = item.get("name").unwrap_or(&item["metadata"]["name"]);
                name.as_str().expect("a name").to_owned()
            })
            .collect()
        };
        let declared = &names(&pod["volumes"]) | &names(&spec["volumeClaimTemplates"]);
        assert_eq!(names(&container["volumeMounts"]), declared, "{role}");
        let config = pod["volumes"].as_array().expect("volumes").iter().find(|volume| volume["name"] == "config");
        let generated = &kustomization["configMapGenerator"][0]["name"];
        assert_eq!(&config.expect("a ConfigMap")["configMap"]["name"], generated, "{role}");

        let budget = resource(&resources, "PodDisruptionBudget", &format!("watershed-{role}"));
        assert_eq!(budget["spec"]["selector"]["matchLabels"], labels(role));
        assert_eq!(budget["spec"]["maxUnavailable"], 1);
        assert!(spec["replicas"].as_u64().expect("a number") > 1, "{role}: a budget of one pod blocks every drain");
    }
    let memory = process(&python, "batch").config().batch.memory_limit_bytes;
    let limit = &workload(&resources, "batch")["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"];
    let limit: usize = limit["memory"].as_str().and_then(|text| text.strip_suffix("Gi")?.parse().ok()).expect("Gi");
    assert!(memory < limit << 30, "builds would be killed for their memory");
    // The commands in the kustomization make the secret that the pods name.
    let how = read(&folder("base").join("kustomization.yaml"));
    assert!(how.contains("create secret generic watershed-speed --from-literal=token="), "{how}");
}

#[test]
fn services_lead_to_the_ports_that_pods_listen_on() {
    let Some(python) = python() else { return };
    let resources = resources(&python);
    for (name, role) in [("watershed", "serving"), ("watershed-speed", "speed")] {
        let service = resource(&resources, "Service", name);
        assert_eq!(service["spec"]["selector"], labels(role));
        let port = process(&python, role).listen().port();
        let ports = json!([{ "name": "http", "port": port, "targetPort": "http" }]);
        assert_eq!(service["spec"]["ports"], ports, "{name}");
    }
    let headless = resource(&resources, "Service", "watershed-speed");
    assert_eq!(headless["spec"]["clusterIP"], "None");
    assert_eq!(headless["spec"]["publishNotReadyAddresses"], true);
    let speed = workload(&resources, "speed");
    assert_eq!(speed["spec"]["serviceName"], headless["metadata"]["name"]);
    let config = process(&python, "speed").config();
    assert_eq!(config.speed.advertise.as_deref(), Some("watershed-speed-0.watershed-speed:8081"));
    assert_eq!(config.speed.claim, Claim::Auto);
    // A restarted pod counts as there only when its shards are served again.
    let patience = speed["spec"]["minReadySeconds"].as_u64().expect("a number");
    assert!(patience > config.speed.owner_timeout.as_secs());
}

#[test]
fn fixed_shards_are_those_of_the_ordinals() {
    let Some(python) = python() else { return };
    let kustomization = kustomization(&python, "fixed-shards");
    assert_eq!(texts(&kustomization["resources"]), ["../base"]);
    let patch = kustomization["patches"][0]["path"].as_str().expect("a file");
    let patch = documents(&python, &folder("fixed-shards").join(patch)).remove(0);
    let base = workload(&resources(&python), "speed");
    let container = &patch["spec"]["template"]["spec"]["containers"][0];
    assert_eq!((&patch["kind"], &patch["metadata"]["name"]), (&base["kind"], &base["metadata"]["name"]));
    assert_eq!(container["name"], base["spec"]["template"]["spec"]["containers"][0]["name"]);
    let env = environment(&container["env"], "speed");
    assert_eq!(env.keys().collect::<Vec<_>>(), ["WATERSHED_CLAIM"]);
    let mut process = process(&python, "speed");
    let replicas = patch["spec"]["replicas"].as_u64().and_then(|n| u32::try_from(n).ok()).expect("a number");
    for ordinal in 0..replicas {
        process.env.insert("WATERSHED_CLAIM".to_owned(), ordinal.to_string());
        assert_eq!(process.config().speed.claim, Claim::Shards([ordinal].into()));
    }
    for stream in process.config().streams.values() {
        assert_eq!(
            stream.shards, replicas,
            "stream `{}`: a shard without a pod, or a pod without a shard",
            stream.name
        );
    }
}
