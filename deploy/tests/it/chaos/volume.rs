//! A small disk that can be filled: a tmpfs that nobody sees but the processes that are started into it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Far above what a delta store needs here.
const SIZE: &str = "64m";

/// The disk; it ends with this value, or with this process.
#[derive(Debug)]
pub(super) struct Volume {
    holder: Child,
    dir: PathBuf,
}

impl Volume {
    /// Mounts it at `dir`; `None` where that is not allowed, which it says.
    ///
    /// SUBTLE: in a mount namespace of its own, which a process that sleeps keeps: nothing stays mounted, however this
    /// process ends.
    pub(super) fn mount(dir: &Path) -> Option<Self> {
        let script = "mount -t tmpfs -o size=\"$2\" chaos \"$1\" && echo mounted && exec sleep infinity";
        std::fs::create_dir_all(dir).expect("a folder");
        let mut holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "sh", "-c", script, "sh"])
            .arg(dir)
            .arg(SIZE)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv and unshare are there (of util-linux)");
        let mut said = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut said).expect("it can be read");
        if said.trim() != "mounted" {
            drop(holder.wait());
            println!("left out: full disks, since nothing can be mounted here (it takes root, or CAP_SYS_ADMIN)");
            return None;
        }
        Some(Self { holder, dir: dir.to_owned() })
    }

    /// What starts a program so that it sees the disk.
    pub(super) fn enter(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--mount=/proc/{}/ns/mnt", self.holder.id())]
    }

    /// Where this process finds what the others find in `dir`.
    pub(super) fn seen_from_here(&self) -> PathBuf {
        let inside = self.dir.strip_prefix("/").expect("an absolute path");
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(inside)
    }

    fn filler(&self) -> PathBuf {
        self.seen_from_here().join("filler")
    }

    /// Leaves no room.
    pub(super) fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).expect("a file");
        let mut block = vec![0xfe_u8; 1 << 16];
        while !block.is_empty() {
            // Ever less, down to the last byte.
            if file.write_all(&block).is_err() {
                block.truncate(block.len() / 2);
            }
        }
    }

    /// Makes room again.
    pub(super) fn free(&self) {
        std::fs::remove_file(self.filler()).expect("it was filled");
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}
