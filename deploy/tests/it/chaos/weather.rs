//! What is wrong at the moment, by intention: what an answer may suffer from, and until when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// In which a thread wakes that is to do so ten times a second.
const MOMENT: Duration = Duration::from_millis(500);

/// Behind the last record of each partition.
pub(crate) type Ends = BTreeMap<i32, i64>;

/// What a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Batch,
    Speed,
    /// The serving process of this number.
    Serving(usize),
    /// Kafka.
    Log,
    /// HDFS.
    Storage,
    /// All at once.
    Machine,
}

/// One fault, from its beginning until everybody who looks has seen that nothing is left of it.
#[derive(Debug)]
struct Trouble {
    part: Part,
    what: String,
    /// Where the log ended when nothing was broken any more.
    healed: Option<Ends>,
    /// Who has not seen the recovery yet: numbers of serving processes.
    waiting: BTreeSet<usize>,
}

/// All faults that somebody may still see something of.
///
/// A fault that is healed is over for the one who asks serving process `n` as soon as that one has answered all views
/// completely, past where the log ended then: what was produced after the fault has come through.
#[derive(Debug)]
pub(crate) struct Weather {
    troubles: Mutex<BTreeMap<u64, Trouble>>,
    observers: usize,
    /// Faults so far.
    begun: AtomicU64,
}

impl Weather {
    pub(crate) fn new(observers: usize) -> Self {
        Self { troubles: Mutex::default(), observers, begun: AtomicU64::new(0) }
    }

    /// A fault begins; answers its number.
    pub(crate) fn begins(&self, part: Part, what: impl Into<String>) -> u64 {
        let mut troubles = self.troubles.lock();
        let id = self.begun.fetch_add(1, Ordering::Relaxed);
        let waiting = (0..self.observers).collect();
        troubles.insert(id, Trouble { part, what: what.into(), healed: None, waiting });
        id
    }

    /// Nothing is broken any more; the log ends at `ends`.
    pub(crate) fn heals(&self, id: u64, ends: Ends) {
        self.troubles.lock().get_mut(&id).expect("it began, and nobody saw it end").healed = Some(ends);
    }

    /// Those that are healed and that `observer` may still see something of.
    pub(crate) fn healed(&self, observer: usize) -> Vec<u64> {
        let troubles = self.troubles.lock();
        let healed = troubles.iter().filter(|(_, t)| t.healed.is_some() && t.waiting.contains(&observer));
        healed.map(|(id, _)| *id).collect()
    }

    /// `observer` has asked for all views since those were healed: each answer was complete and at or past `least`.
    pub(crate) fn seen_well(&self, observer: usize, healed: &[u64], least: &Ends) {
        let mut troubles = self.troubles.lock();
        for id in healed {
            let trouble = troubles.get_mut(id).expect("somebody waits for it");
            let ends = trouble.healed.as_ref().expect("it is healed");
            if ends.iter().all(|(p, end)| least.get(p).is_some_and(|least| least > end)) {
                trouble.waiting.remove(&observer);
            }
        }
        troubles.retain(|_, trouble| !trouble.waiting.is_empty());
    }

    /// Whether `observer` may still see something of a fault of such a part, or of the machine.
    pub(crate) fn excuses(&self, observer: usize, part: impl Fn(Part) -> bool) -> bool {
        self.any_of(|t| t.waiting.contains(&observer) && (t.part == Part::Machine || part(t.part)))
    }

    /// Whether a fault of such a part, or of the machine, is not over for everybody.
    pub(crate) fn any(&self, part: impl Fn(Part) -> bool) -> bool {
        self.any_of(|t| t.part == Part::Machine || part(t.part))
    }

    fn any_of(&self, trouble: impl Fn(&Trouble) -> bool) -> bool {
        let found = || self.troubles.lock().values().any(&trouble);
        // That the machine stood still is noticed a moment after it goes on.
        found() || {
            std::thread::sleep(MOMENT);
            found()
        }
    }

    /// Now, for [`Weather::fair_since`]; `None` while any fault is not over for everybody.
    pub(crate) fn fair(&self) -> Option<u64> {
        let troubles = self.troubles.lock();
        troubles.is_empty().then(|| self.begun.load(Ordering::Relaxed))
    }

    /// Whether nothing was broken then, and no fault has begun since.
    pub(crate) fn fair_since(&self, then: Option<u64>) -> bool {
        then.is_some() && then == self.fair()
    }

    /// Everything that is not over, for people.
    pub(crate) fn report(&self) -> Vec<String> {
        let line = |t: &Trouble| match &t.healed {
            None => format!("{} ({:?}), going on", t.what, t.part),
            Some(ends) => format!("{} ({:?}), healed at {ends:?}, not yet seen by {:?}", t.what, t.part, t.waiting),
        };
        self.troubles.lock().values().map(line).collect()
    }
}
