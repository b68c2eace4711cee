//! The processes of all roles, each started again when it has ended, as a service manager would do.

use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use watershed_shared::clock::Instant;

use super::volume::Volume;
use super::weather::{Part, Weather};
use super::{PATIENCE, Watch};
use crate::harness::up;

/// Before a process that has ended is started again.
const PAUSE: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Batch,
    Speed,
    Serving,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Speed => "speed",
            Self::Serving => "serving",
        }
    }
}

/// One process of a role.
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Its number within the role.
    pub(crate) number: usize,
    home: PathBuf,
    log: PathBuf,
    pub(super) volume: Option<Volume>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    child: Option<Child>,
    /// Somebody wants it to be away.
    away: bool,
    /// How often it was started.
    life: u64,
    /// How often it ended by itself.
    ended: u64,
    /// When it did so last.
    rested: Option<Instant>,
}

impl Process {
    /// Not started yet. Its folder is below `data`, its log in `logs`.
    pub(super) fn new(role: Role, number: usize, data: &Path, logs: &Path, config: &str, disk: bool) -> Self {
        let name = format!("{}-{number}", role.name());
        let home = data.join(&name);
        std::fs::create_dir_all(&home).expect("a folder");
        std::fs::write(home.join("watershed.toml"), config).expect("the configuration can be written");
        let volume = if disk { Volume::mount(&home.join("data")) } else { None };
        let log = logs.join(format!("{name}.log"));
        Self { name, role, number, home, log, volume, state: Mutex::default() }
    }

    pub(super) fn part(&self) -> Part {
        match self.role {
            Role::Batch => Part::Batch,
            Role::Speed => Part::Speed,
            Role::Serving => Part::Serving(self.number),
        }
    }

    /// Its `data_dir`.
    pub(super) fn data(&self) -> PathBuf {
        self.volume.as_ref().map_or_else(|| self.home.join("data"), Volume::seen_from_here)
    }

    fn spawn(&self, state: &mut State) {
        self.forget_url();
        let up = up(&self.home.join("watershed.toml"), &["--role", self.role.name()]);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("a log");
        let mut command = Command::new("setpriv");
        // It ends with this process, however that ends.
        command.args(["--pdeathsig", "KILL"]).args(self.volume.iter().flat_map(Volume::enter));
        command.arg(up.get_program()).args(up.get_args()).current_dir(&self.home);
        command.env("RUST_LOG", LOGGED).env("RUST_BACKTRACE", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        state.child = Some(command.spawn().expect("the program starts (setpriv and nsenter are of util-linux)"));
        state.life += 1;
    }

    /// Lets it be started.
    pub(super) fn start(&self) {
        self.state.lock().away = false;
    }

    /// SIGKILL; it stays away until it is started.
    pub(super) fn kill(&self) {
        let mut state = self.state.lock();
        state.away = true;
        if let Some(mut child) = state.child.take() {
            child.kill().expect("it can be killed");
            child.wait().expect("it can be waited for");
        }
        self.forget_url();
    }

    /// What a process that was killed left behind.
    fn forget_url(&self) {
        match std::fs::remove_file(self.data().join("http.json")) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        }
    }

    /// SIGTERM; it ends in good order and stays away.
    pub(super) fn stop(&self) {
        let child = {
            let mut state = self.state.lock();
            state.away = true;
            state.child.take()
        };
        let Some(mut child) = child else { return };
        signal(&child, "TERM");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match child.try_wait().expect("it can be waited for") {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    drop(child.kill());
                    panic!("{} does not end after SIGTERM", self.name);
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        assert!(status.success(), "{} ended with {status} after SIGTERM", self.name);
    }

    /// Sends a signal; answers whether it was there.
    pub(super) fn signal(&self, name: &str) -> bool {
        let state = self.state.lock();
        state.child.as_ref().inspect(|child| signal(child, name)).is_some()
    }

    /// Where it answers, and which of its lives that is; `None` until it is up.
    pub(crate) fn url(&self) -> Option<(String, u64)> {
        let life = self.state.lock().life;
        let url = self.written_url()?;
        let same = self.state.lock().life == life;
        same.then_some((url, life))
    }

    /// What the process that is there, or was last, wrote when it was up; the file may be empty if its disk is full.
    fn written_url(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.data().join("http.json")).ok()?;
        let value: Value = serde_json::from_str(&text).ok()?;
        Some(value["url"].as_str().expect("a URL").to_owned())
    }

    /// Everything that it has said so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read(&self.log).map(|said| String::from_utf8_lossy(&said).into_owned()).unwrap_or_default()
    }

    pub(super) fn wait_until_up(&self, watch: &Watch) {
        watch.until(&format!("{} is up", self.name), || self.url().is_some());
    }

    /// It has ended by itself: it may only where it cannot start, and has to say why.
    fn judge(&self, status: ExitStatus, started: bool, weather: &Weather) {
        assert_eq!(status.signal(), None, "{} ended with {status}", self.name);
        assert!(!started, "{} ended with {status} though it was up", self.name);
        let disk = self.volume.is_some();
        let excused = weather.any(|part| matches!(part, Part::Log | Part::Storage) || (disk && part == Part::Speed));
        assert!(excused && status.code() == Some(1), "{} did not start, though nothing is wrong: {status}", self.name);
    }

    /// Starts it if it is to be there and is not.
    ///
    /// SUBTLE: only one thread does, which lasts as long as they are to: to the kernel the thread that starts a process
    /// is its parent, with whose end it ends.
    fn attend(&self, weather: &Weather) {
        let mut state = self.state.lock();
        let Some(child) = &mut state.child else {
            if !state.away && state.rested.is_none_or(|since| since.elapsed() > PAUSE) {
                self.spawn(&mut state);
            }
            return;
        };
        let Some(status) = child.try_wait().expect("it can be waited for") else { return };
        state.child = None;
        state.ended += 1;
        state.rested = Some(Instant::now());
        self.judge(status, self.written_url().is_some(), weather);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.state.lock().child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// What they write down: why something failed is found here or nowhere.
const LOGGED: &str = "info,buoyant_kernel=off,warp=off,deltalake_core=warn,hdfs_native=error,datafusion=warn,rdkafka=error,librdkafka=error";

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().expect("kill runs");
    assert!(done.success(), "kill -{name}: {done}");
}

/// All processes.
pub(crate) struct Fleet(Vec<Process>);

impl Fleet {
    pub(super) fn new(processes: Vec<Process>) -> Self {
        Self(processes)
    }

    pub(crate) fn all(&self) -> &[Process] {
        &self.0
    }

    pub(crate) fn of(&self, role: Role) -> Vec<&Process> {
        self.0.iter().filter(|process| process.role == role).collect()
    }

    /// Whether the disks of workers can be filled.
    pub(crate) fn has_disks(&self) -> bool {
        self.0.iter().any(|process| process.volume.is_some())
    }

    /// Starts again what has ended by itself, until `stop`.
    pub(super) fn attend(&self, weather: &Weather, stop: &Watch) {
        while !stop.is_over() {
            self.0.iter().for_each(|process| process.attend(weather));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How often one of them ended by itself, at its start.
    pub(crate) fn ended(&self) -> u64 {
        self.0.iter().map(|process| process.state.lock().ended).sum()
    }
}
