//! What a case is about: the program as one process, or each role in processes of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use watershed_shared::clock::Instant;

use crate::harness::{Client, Running};

/// How many batch processes there are among the roles: both archive every stream.
const BATCHES: usize = 2;
/// How many speed workers.
const WORKERS: usize = 2;

/// The processes of a case.
pub(crate) enum Subject {
    Whole(Running),
    Roles(Roles),
}

/// By name: the batch processes, serving, and the workers.
pub(crate) struct Roles(BTreeMap<String, Running>);

/// What the processes are started with.
pub(crate) struct Launch<'a> {
    pub(crate) config: &'a str,
    pub(crate) dir: &'a Path,
    pub(crate) env: &'a [(&'a str, &'a str)],
    /// Until they are ready.
    pub(crate) patience: Duration,
}

/// The names of the processes, in the order in which they start.
fn names() -> Vec<String> {
    let batches = (0..BATCHES).map(|number| format!("{BATCH}-{number}"));
    let workers = (0..WORKERS).map(|number| format!("{SPEED}-{number}"));
    batches.chain(workers).chain([SERVING.to_owned()]).collect()
}

const BATCH: &str = "batch";
const SPEED: &str = "speed";
const SERVING: &str = "serving";

/// The role of the process `name`.
fn role(name: &str) -> &'static str {
    [BATCH, SPEED, SERVING].into_iter().find(|role| name.starts_with(role)).expect("a name begins with its role")
}

impl Launch<'_> {
    fn process(&self, name: &str) -> Running {
        let home = self.dir.join(name);
        std::fs::create_dir_all(&home).expect("a folder");
        if self.env.iter().any(|(name, _)| *name == "WATERSHED_ABORT_AT") {
            // Without one that has ended already the others may never be ready.
            return Running::start_role_unready(role(name), self.config, &home, self.env);
        }
        Running::start_role_within(role(name), self.config, &home, self.env, self.patience)
    }
}

impl Subject {
    pub(crate) fn start(launch: &Launch<'_>, roles: bool) -> Self {
        if !roles {
            return Self::Whole(Running::start_within(launch.config, launch.dir, launch.env, launch.patience));
        }
        Self::Roles(Roles(names().into_iter().map(|name| (name.clone(), launch.process(&name))).collect()))
    }

    /// The folders of the delta stores.
    pub(crate) fn delta_stores(dir: &Path, roles: bool) -> Vec<PathBuf> {
        match roles {
            false => vec![dir.join("data/delta")],
            true => names().iter().map(|name| dir.join(name).join("data/delta")).collect(),
        }
    }

    fn processes(&self) -> Vec<&Running> {
        match self {
            Self::Whole(running) => vec![running],
            Self::Roles(Roles(all)) => all.values().collect(),
        }
    }

    /// In the order in which they are to end: who asks goes first.
    fn into_processes(self) -> Vec<Running> {
        match self {
            Self::Whole(running) => vec![running],
            Self::Roles(Roles(mut all)) => names().iter().rev().filter_map(|name| all.remove(name)).collect(),
        }
    }

    /// Of the process that serves.
    pub(crate) fn client(&self) -> &Client {
        match self {
            Self::Whole(running) => running.client(),
            Self::Roles(Roles(all)) => all[SERVING].client(),
        }
    }

    /// What all of them said.
    pub(crate) fn log(&self) -> String {
        self.processes().iter().map(|running| running.log()).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn stop(self) {
        self.into_processes().into_iter().for_each(Running::stop);
    }

    pub(crate) fn kill(self) {
        self.into_processes().into_iter().for_each(Running::kill);
    }

    /// Whether one of them ends by itself within `patience`.
    pub(crate) fn ended_within(&mut self, patience: Duration) -> bool {
        let all = match self {
            Self::Whole(running) => return running.ended_within(patience),
            Self::Roles(Roles(all)) => all,
        };
        let deadline = Instant::now() + patience;
        loop {
            if all.values_mut().any(|running| running.ended_within(Duration::ZERO)) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Roles {
    /// How many processes there are.
    pub(crate) const COUNT: usize = BATCHES + WORKERS + 1;

    /// Ends a process, by a kill or in good order, and starts it again. Answers its role.
    pub(crate) fn replace(&mut self, number: usize, kill: bool, launch: &Launch<'_>) -> &'static str {
        let name = names().swap_remove(number);
        let running = self.0.remove(&name).expect("all of them run");
        if kill {
            running.kill();
        } else {
            running.stop();
        }
        self.0.insert(name.clone(), launch.process(&name));
        role(&name)
    }
}
