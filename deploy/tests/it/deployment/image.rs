//! The image: `deploy/docker/Dockerfile` and `.dockerignore`.

use std::process::Command;

use super::{Probe, python, read, root, succeeded};

/// The lines of the Dockerfile without comments; those that go on are joined.
fn instructions() -> Vec<String> {
    let text = read(&root().join("deploy/docker/Dockerfile")).replace("\\\n", " ");
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// What stands behind the last `instruction`: the last stage is the image.
#[track_caller]
pub(super) fn last(instruction: &str) -> String {
    let lines = instructions();
    let found = lines.iter().rev().find_map(|line| line.strip_prefix(&format!("{instruction} ")));
    found.unwrap_or_else(|| panic!("the Dockerfile has no {instruction}")).to_owned()
}

#[track_caller]
fn list(instruction: &str) -> Vec<String> {
    serde_json::from_str(&last(instruction)).unwrap_or_else(|error| panic!("{instruction}: {error}"))
}

/// What the health check asks where WATERSHED_HEALTH_PORT is `port`, or not set.
#[track_caller]
pub(super) fn health(port: Option<&str>) -> Probe {
    let default = last("ENV");
    let default = default.strip_prefix("WATERSHED_HEALTH_PORT=").expect("the one variable of the image");
    let check = last("HEALTHCHECK");
    let (_, rest) = check.split_once("http://127.0.0.1:${WATERSHED_HEALTH_PORT}/").expect("an address");
    let path: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
    let port = port.unwrap_or(default).parse().expect("a port");
    Probe { path: format!("/{path}"), port }
}

#[test]
fn the_image_agrees_with_what_it_names() {
    let name = env!("CARGO_PKG_NAME");
    let lines = instructions();
    assert_eq!(lines[0], format!("FROM rust:{}-bookworm AS build", env!("CARGO_PKG_RUST_VERSION")));
    let build = lines.iter().find(|line| line.contains("cargo build")).expect("a build");
    for part in [
        "--locked --release".to_owned(),
        format!("--package {name} --bin {name} --features tls"),
        format!("target/release/{name} /out/{name}"),
    ] {
        assert!(build.contains(&part), "{part}: {build}");
    }
    assert_eq!(last("COPY"), format!("--from=build /out/{name} /usr/local/bin/{name}"));
    assert_eq!(list("ENTRYPOINT"), [format!("/usr/local/bin/{name}")]);
    let installs = lines.iter().rev().find(|line| line.contains("apt-get install")).expect("packages");
    assert!(installs.contains(" libssl3 "), "what `tls` is linked with: {installs}");
    let command = list("CMD");
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    assert_eq!(command, ["up", "--role", "all", "-c", "/etc/watershed/watershed.toml"]);
    let user = last("USER");
    assert_eq!(user, "10001:10001", "not root");
    let run = lines.iter().find(|line| line.contains("useradd")).expect("a user");
    assert!(run.contains("--gid 10001") && run.contains("--uid 10001"), "{run}");
    assert!(run.contains(&format!("install -d -o {name} -g {name} {} ", last("VOLUME"))), "{run}");
    assert_eq!(health(None), Probe { path: "/healthz".to_owned(), port: 8080 });
    assert_eq!((last("STOPSIGNAL").as_str(), last("EXPOSE").as_str()), ("SIGTERM", "8080 8081"));
}

#[test]
fn the_image_is_built_from_the_workspace() {
    let root = root();
    let ignored = read(&root.join(".dockerignore"));
    let let_in: Vec<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignored.lines().any(|line| line == "*"), "nothing else is let in");
    let manifest = read(&root.join("Cargo.toml"));
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).expect("members");
    let members: Vec<String> = serde_json::from_str(members).expect("a list");
    for member in &members {
        let top = member.split('/').next().expect("a folder");
        assert!(let_in.contains(&top), "{member}");
    }
    for name in let_in {
        assert!(root.join(name).try_exists().expect("a folder"), "{name}");
    }
}

/// hadolint comes with the Python packages.
#[test]
fn the_dockerfile_is_in_order() {
    let Some(python) = python() else { return };
    let hadolint = python.parent().expect("a folder").join("hadolint");
    let found = succeeded(Command::new(hadolint).arg(root().join("deploy/docker/Dockerfile")));
    assert_eq!(found, "");
}
