//! Which shards of a stream this process owns: claims, and what others claim.
//!
//! Two owners of one shard are harmless: whoever reads deltas takes that of the newest who has caught up. So an owner who is
//! passed by another goes on until that one has reached it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use watershed_shared::catalog::{Ownership, Rejected, StreamEvent, StreamState};
use watershed_shared::clock::{self, Instant};
use watershed_shared::config::Claim;
use watershed_shared::delta::{Peers, Progress};
use watershed_shared::register::Register;
use watershed_shared::shard::Shard;

use crate::service::DeltaServer;

/// Who is passed by another waits for that one for this long at most.
const HAND_OVER: Duration = Duration::from_secs(600);
/// Between two looks at least, and at most.
const LEAST_LOOK: Duration = Duration::from_millis(50);
const MOST_LOOK: Duration = Duration::from_secs(1);
/// Questions in a row without an answer that make an owner silent: one may have met a pause of this process.
const LEAST_UNANSWERED: u32 = 2;

/// What claims are made with.
#[derive(Debug)]
pub struct ClaimOptions {
    pub stream: String,
    pub shards: u32,
    pub claim: Claim,
    /// How long an owner may be silent.
    pub owner_timeout: Duration,
    /// This process, the same after a restart on the same `data_dir`.
    pub worker: String,
    /// Where others reach its delta service.
    pub address: String,
    pub peers: Peers,
}

/// Claims shards of a stream, and holds them until another process does.
#[derive(Debug)]
pub struct Claims {
    options: ClaimOptions,
    register: Register<StreamState>,
    state: watch::Receiver<Arc<StreamState>>,
    server: DeltaServer,
    held: watch::Sender<BTreeMap<u32, u64>>,
    /// Shards that this process has held in this life, and handed over.
    handed_over: BTreeSet<u32>,
    watched: BTreeMap<u32, Watched>,
}

/// What is seen of the owner of a shard that this process does not own.
#[derive(Debug)]
struct Watched {
    epoch: u64,
    /// It was first seen.
    since: Instant,
    /// It answered last, or was first seen.
    answered: Instant,
    /// Questions since then.
    unanswered: u32,
}

impl Watched {
    fn new(epoch: u64) -> Self {
        Self { epoch, since: Instant::now(), answered: Instant::now(), unanswered: 0 }
    }

    fn note(&mut self, answered: bool) {
        if answered {
            (self.answered, self.unanswered) = (Instant::now(), 0);
        } else {
            self.unanswered += 1;
        }
    }

    /// SUBTLE: time alone says nothing of the owner. It also passes while this process stands still, or waits for the
    /// storage with a claim of another shard, and asks nobody.
    fn is_silent(&self, timeout: Duration) -> bool {
        self.unanswered >= LEAST_UNANSWERED && self.answered.elapsed() >= timeout
    }
}

/// What this process has had of a shard in this life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Had {
    Nothing,
    /// It holds the shard, by the claim of this epoch.
    Held(u64),
    /// It has handed the shard over.
    HandedOver,
}

/// What to do about a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Claim,
    /// It is ours.
    Hold,
    /// It is another's by now, who may have to catch up.
    HandOver,
    /// It is another's; look whether that one lives.
    Watch,
    /// It is none of ours.
    Leave,
}

/// What is to be done about a shard.
///
/// | owner in the register | wanted | step |
/// |---|---|---|
/// | this process, this life; or what is followed is older than that claim | any | hold |
/// | none, or given up | yes | claim |
/// | this process, an earlier life | yes | claim: the position may have gone back |
/// | another, after this process held it | any | hand over; claim again once it is silent |
/// | another | by name, not held in this life yet | claim |
/// | another | automatically, or by name and handed over | watch; claim once it is silent |
/// | anything else | no | leave |
///
/// Two who name one shard do not take turns: who has handed it over waits until the other one is gone.
fn decide(owner: Option<&Ownership>, claim: &Claim, shard: u32, worker: &str, had: Had, silent: bool) -> Step {
    let named = match claim {
        Claim::Auto => None,
        Claim::Shards(shards) => Some(shards.contains(&shard)),
    };
    let wanted = named.unwrap_or(true);
    match owner {
        // SUBTLE: the followed register may lag behind the claim of this process. An older owner is not handed over to.
        _ if matches!(had, Had::Held(held) if owner.map_or(0, |owner| owner.epoch) <= held) => Step::Hold,
        Some(owner) if matches!(had, Had::Held(_)) && !owner.released && !silent => Step::HandOver,
        _ if !wanted => Step::Leave,
        None => Step::Claim,
        Some(owner) if owner.released || owner.worker == worker => Step::Claim,
        Some(_) if silent || named.is_some() && had != Had::HandedOver => Step::Claim,
        Some(_) => Step::Watch,
    }
}

impl Claims {
    /// `state`: of the register. `server`: where this process's own deltas are offered.
    pub fn new(
        options: ClaimOptions,
        register: Register<StreamState>,
        state: watch::Receiver<Arc<StreamState>>,
        server: DeltaServer,
    ) -> Self {
        let held = watch::Sender::new(BTreeMap::new());
        Self { options, register, state, server, held, handed_over: BTreeSet::new(), watched: BTreeMap::new() }
    }

    /// The shards that are to be served, with the epoch of the claim.
    pub fn held(&self) -> watch::Receiver<BTreeMap<u32, u64>> {
        self.held.subscribe()
    }

    /// Claims and hands over until `stop`; then gives up what is still held, so that others need not wait.
    pub async fn run(mut self, stop: CancellationToken) {
        let look = (self.options.owner_timeout / 5).clamp(LEAST_LOOK, MOST_LOOK);
        loop {
            self.look().await;
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = self.state.changed() => {}
                () = clock::sleep(look) => {}
            }
        }
        let held = self.held.borrow().clone();
        for (shard, epoch) in held {
            let released = self.register.update(|state: &StreamState| {
                let ours = state.owners.get(&shard).is_some_and(|owner| owner.epoch == epoch);
                Ok::<_, Rejected>(ours.then_some(StreamEvent::Released { shard, epoch }))
            });
            if let Err(error) = released.await {
                tracing::warn!(stream = self.options.stream, shard, %error, "cannot give a shard up: others claim it later");
            }
        }
    }

    async fn look(&mut self) {
        let state = Arc::clone(&self.state.borrow_and_update());
        for shard in Shard::all(self.options.shards) {
            let owner = state.owners.get(&shard.number);
            let had = match self.held.borrow().get(&shard.number) {
                Some(epoch) => Had::Held(*epoch),
                None if self.handed_over.contains(&shard.number) => Had::HandedOver,
                None => Had::Nothing,
            };
            let silent = owner.is_some_and(|owner| self.is_silent(owner));
            let ClaimOptions { claim, worker, .. } = &self.options;
            match decide(owner, claim, shard.number, worker, had, silent) {
                Step::Claim => self.claim(shard, owner.map_or(0, |owner| owner.epoch), silent).await,
                Step::HandOver => {
                    let owner = owner.expect("handed over to an owner").clone();
                    if self.has_caught_up(shard, &owner).await {
                        tracing::info!(stream = self.options.stream, %shard, to = owner.worker, "handed a shard over");
                        self.handed_over.insert(shard.number);
                        self.held.send_if_modified(|held| held.remove(&shard.number).is_some());
                    }
                }
                Step::Watch => {
                    let owner = owner.expect("an owner is watched").clone();
                    // It counts as answered, or becomes silent.
                    drop(self.ask(&owner).await);
                }
                Step::Hold | Step::Leave => {}
            }
        }
    }

    /// Whether the owner has been asked, and has not answered for `owner_timeout` on this process's clock.
    fn is_silent(&self, owner: &Ownership) -> bool {
        let watched = self.watched.get(&owner.shard).filter(|watched| watched.epoch == owner.epoch);
        watched.is_some_and(|watched| watched.is_silent(self.options.owner_timeout))
    }

    /// Looks whether the owner answers, and how far it is.
    async fn ask(&mut self, owner: &Ownership) -> Option<Progress> {
        let progress = match self.options.peers.of(&self.options.stream, owner) {
            // Who hangs is asked as often as it takes within that time.
            Some(peer) => peer.progress(self.options.owner_timeout / LEAST_UNANSWERED).await,
            None => None,
        };
        let watched = self.watched.entry(owner.shard).or_insert_with(|| Watched::new(owner.epoch));
        if watched.epoch != owner.epoch {
            *watched = Watched::new(owner.epoch);
        }
        watched.note(progress.is_some());
        progress
    }

    /// Appends a claim behind `epoch`, if that is still the last.
    async fn claim(&mut self, shard: Shard, epoch: u64, silent: bool) {
        let (worker, address) = (self.options.worker.clone(), Some(self.options.address.clone()));
        let ownership = Ownership { shard: shard.number, epoch: epoch + 1, worker, address, released: false };
        let mut claimed = false;
        let decided = self.register.update(|state: &StreamState| {
            let now = state.owners.get(&shard.number);
            // SUBTLE: a claim of ours whose answer was lost stands there already.
            claimed = now == Some(&ownership) || now.map_or(0, |owner| owner.epoch) == epoch;
            let event = StreamEvent::Owned { ownership: ownership.clone() };
            Ok::<_, Rejected>((claimed && now != Some(&ownership)).then_some(event))
        });
        match decided.await {
            Ok(_) if claimed => {
                let stream = &self.options.stream;
                tracing::info!(stream, %shard, epoch = ownership.epoch, silent, "claimed a shard");
                self.held.send_modify(|held| held.extend([(shard.number, ownership.epoch)]));
            }
            // Somebody else was quicker.
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(stream = self.options.stream, %shard, %error, "cannot claim a shard, and try again");
            }
        }
    }

    /// Whether `owner` has reached what this process answers, or has had time enough.
    async fn has_caught_up(&mut self, shard: Shard, owner: &Ownership) -> bool {
        let theirs = self.ask(owner).await;
        let waited = self.watched.get(&shard.number).is_some_and(|watched| watched.since.elapsed() >= HAND_OVER);
        let Some(ours) = self.server.progress(&self.options.stream, shard) else { return true };
        waited || theirs.is_some_and(|theirs| theirs.joined && theirs.position.covers(&ours.position))
    }
}

#[cfg(test)]
mod tests {
    use watershed_shared::storage::Storage;

    use super::*;

    #[test]
    fn an_owner_whom_this_process_has_not_asked_is_not_silent() {
        let timeout = Duration::from_secs(3);
        // This process was stopped for a while.
        let mut watched = Watched { answered: Instant::now() - 3 * timeout, ..Watched::new(1) };
        assert!(!watched.is_silent(timeout));
        watched.note(false);
        assert!(!watched.is_silent(timeout), "that question was under way when it was stopped");
        watched.note(false);
        assert!(watched.is_silent(timeout));
        watched.note(true);
        assert!(!watched.is_silent(timeout));
        (0..9).for_each(|_| watched.note(false));
        assert!(!watched.is_silent(timeout), "it has had no time to answer");
    }

    fn owner(epoch: u64, worker: &str, released: bool) -> Ownership {
        Ownership { shard: 0, epoch, worker: worker.to_owned(), address: None, released }
    }

    #[test]
    fn a_shard_is_claimed_only_when_nobody_serves_it_or_it_is_named() {
        let auto = |owner: Option<Ownership>, held: Option<u64>, silent| {
            decide(owner.as_ref(), &Claim::Auto, 0, "a", held.map_or(Had::Nothing, Had::Held), silent)
        };
        assert_eq!(auto(None, None, false), Step::Claim);
        assert_eq!(auto(Some(owner(3, "b", false)), None, false), Step::Watch);
        assert_eq!(auto(Some(owner(3, "b", false)), None, true), Step::Claim);
        assert_eq!(auto(Some(owner(3, "b", true)), None, false), Step::Claim);
        assert_eq!(auto(Some(owner(3, "a", false)), None, false), Step::Claim, "an earlier life");
        assert_eq!(auto(Some(owner(3, "a", false)), Some(3), true), Step::Hold);
        assert_eq!(auto(Some(owner(2, "b", false)), Some(3), false), Step::Hold, "the claim is not seen yet");
        assert_eq!(auto(None, Some(1), false), Step::Hold, "nor the first one");
        assert_eq!(auto(Some(owner(4, "b", false)), Some(3), false), Step::HandOver);
        assert_eq!(auto(Some(owner(4, "b", false)), Some(3), true), Step::Claim, "it died before it had caught up");
        assert_eq!(auto(Some(owner(4, "b", true)), Some(3), false), Step::Claim, "it gave up before it had caught up");

        let named = |owner: Option<Ownership>, had, silent| {
            decide(owner.as_ref(), &Claim::Shards([0].into()), 0, "a", had, silent)
        };
        assert_eq!(named(Some(owner(3, "b", false)), Had::Nothing, false), Step::Claim);
        assert_eq!(named(Some(owner(4, "b", false)), Had::Held(3), false), Step::HandOver);
        assert_eq!(named(Some(owner(4, "b", false)), Had::HandedOver, false), Step::Watch);
        assert_eq!(named(Some(owner(4, "b", false)), Had::HandedOver, true), Step::Claim);
        assert_eq!(named(Some(owner(4, "b", true)), Had::HandedOver, false), Step::Claim);
        let other = Claim::Shards([1].into());
        assert_eq!(decide(None, &other, 0, "a", Had::Nothing, false), Step::Leave);
        assert_eq!(decide(Some(&owner(3, "b", false)), &other, 0, "a", Had::Nothing, true), Step::Leave);
    }

    #[tokio::test]
    async fn two_who_name_one_shard_do_not_take_turns() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(&url::Url::from_directory_path(folder.path()).unwrap()).unwrap();
        let (register, followed) =
            (Register::<StreamState>::open(&storage, "streams", "s"), watch::Sender::new(Arc::default()));
        let claims = |worker: &str| {
            let options = ClaimOptions {
                stream: "s".to_owned(),
                shards: 1,
                claim: Claim::Shards([0].into()),
                owner_timeout: Duration::from_secs(3600),
                worker: worker.to_owned(),
                address: "127.0.0.1:1".to_owned(),
                peers: Peers::new(None).unwrap(),
            };
            let server = DeltaServer::new(None, CancellationToken::new());
            Claims::new(options, register.clone(), followed.subscribe(), server)
        };
        let (mut a, mut b) = (claims("a"), claims("b"));
        for _ in 0..4 {
            for one in [&mut a, &mut b] {
                one.look().await;
                followed.send_replace(Arc::new(register.state().await.unwrap()));
            }
        }
        // Each has claimed it once; the second one keeps it.
        assert_eq!(followed.borrow().owners[&0].epoch, 2);
        assert_eq!((a.held().borrow().len(), b.held().borrow().get(&0)), (0, Some(&2)));
    }
}
