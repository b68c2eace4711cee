//! The machine itself: where it stands still nobody keeps any time.

use std::time::Duration;

use watershed_shared::clock::Instant;

use super::weather::Part;
use super::{Watch, World};

/// A thread that only sleeps wakes again in no more than this.
const AWAKE: Duration = Duration::from_secs(1);

impl World {
    /// Notes when this process has not run for a while, as all others then: it was stopped, or the machine is too busy.
    pub(super) fn watch_machine(&self, stop: &Watch) {
        while !stop.is_over() {
            let asleep = Instant::now();
            std::thread::sleep(Duration::from_millis(100));
            if asleep.elapsed() > AWAKE {
                let what = format!("stood still for {:?}", asleep.elapsed());
                println!("{} the machine {what}", self.time());
                let id = self.weather.begins(Part::Machine, what);
                self.weather.heals(id, self.ledger.ends());
            }
        }
    }
}
