//! The delta of a stream whose shards are owned by other processes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::combine::{Known, combine};
use super::link::{LinkState, Peers};
use super::{DeltaService, Reason, SealError, StreamDelta};
use crate::catalog::{Ownership, StreamState};
use crate::clock;
use crate::offsets::{Cut, OffsetVector};
use crate::shard::Shard;
use crate::task;

/// A connection that breaks may be there again in a moment; only then the answers say it.
const GRACE: Duration = Duration::from_secs(1);
/// How often it is looked whether an owner has become silent.
const TICK: Duration = Duration::from_millis(250);
/// Owners of a shard to which connections are kept.
const MAX_LINKS: usize = 4;

/// Follows the owners of a stream's shards, as its register names them, and makes one delta of theirs.
///
/// # Contract
/// - A shard's delta comes from the owner with the highest ownership epoch among those that have reached what was last
///   shown of that shard; so a position never goes back, whoever claims what.
/// - Who is gone leaves what it last said. As long as nobody goes on from there a reason says which partitions stand still.
#[derive(Debug, Clone)]
pub struct DeltaClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    stream: String,
    shards: u32,
    state: watch::Receiver<Arc<StreamState>>,
    peers: Peers,
    sender: watch::Sender<Arc<StreamDelta>>,
}

/// A connection to an owner.
#[derive(Debug)]
struct Link {
    state: watch::Receiver<LinkState>,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is known of one shard.
#[derive(Debug, Default)]
struct Source {
    /// By ownership epoch.
    links: BTreeMap<u64, Link>,
    /// What was last shown, and whose it was.
    shown: Option<(u64, Arc<StreamDelta>)>,
}

impl DeltaClient {
    /// `state`: of the stream's register.
    pub fn new(stream: &str, shards: u32, state: watch::Receiver<Arc<StreamState>>, peers: Peers) -> Self {
        let nothing = combine(stream, &state.borrow().origins, &[]);
        let sender = watch::Sender::new(Arc::new(nothing));
        Self { inner: Arc::new(Inner { stream: stream.to_owned(), shards, state, peers, sender }) }
    }

    /// Follows until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut state = self.inner.state.clone();
        let (changed, mut changes) = watch::channel(());
        let mut sources: BTreeMap<u32, Source> = BTreeMap::new();
        let mut said: Option<Vec<Reason>> = None;
        loop {
            let register = Arc::clone(&state.borrow_and_update());
            changes.mark_unchanged();
            self.connect(&register, &mut sources, &changed);
            let (whole, reasons) = self.combined(&register, &mut sources);
            // Nobody is woken for what is as it was.
            if said.as_ref() != Some(&reasons) {
                self.inner.sender.send_replace(Arc::new(whole));
                said = Some(reasons);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = changes.changed() => said = None,
                Ok(()) = state.changed() => said = None,
                () = clock::sleep(TICK) => {}
            }
        }
    }

    /// Connects to owners that are new.
    fn connect(&self, register: &StreamState, sources: &mut BTreeMap<u32, Source>, changed: &watch::Sender<()>) {
        for shard in Shard::all(self.inner.shards) {
            let source = sources.entry(shard.number).or_default();
            let Some(owner) = register.owners.get(&shard.number) else { continue };
            if source.links.contains_key(&owner.epoch) {
                continue;
            }
            let Some(peer) = self.inner.peers.of(&self.inner.stream, owner) else { continue };
            let (sender, state) = watch::channel(LinkState::default());
            let (mut told, changed) = (state.clone(), changed.clone());
            let task = task::spawn("follow an owner", async move {
                let tell = async {
                    while told.changed().await.is_ok() {
                        changed.send_replace(());
                    }
                };
                tokio::join!(peer.follow(sender), tell);
            });
            source.links.insert(owner.epoch, Link { state, task });
        }
    }

    /// Chooses for each shard who answers. What they have together, and why some of it does not advance.
    fn combined(&self, register: &StreamState, sources: &mut BTreeMap<u32, Source>) -> (StreamDelta, Vec<Reason>) {
        let mut reasons = Vec::new();
        let mut owned = BTreeMap::new();
        for shard in Shard::all(self.inner.shards) {
            let source = sources.entry(shard.number).or_default();
            let states: BTreeMap<u64, LinkState> =
                source.links.iter().map(|(epoch, link)| (*epoch, link.state.borrow().clone())).collect();
            if let Some(chosen) = choose(&states, source.shown.as_ref(), register.losses.len()) {
                source.shown = Some(chosen);
            }
            let chosen = source.shown.as_ref().map_or(0, |(epoch, _)| *epoch);
            source.links.retain(|epoch, _| *epoch >= chosen);
            while source.links.len() > MAX_LINKS {
                let between = source.links.keys().copied().find(|epoch| *epoch != chosen);
                source.links.remove(&between.expect("more than one link"));
            }
            let still = source.standing_still(register.owners.get(&shard.number), &states);
            owned.insert(shard.number, still.is_none());
            if let Some(reason) = still {
                let partitions = register.origins.iter().filter(|(p, _)| shard.holds(*p));
                reasons.extend(partitions.map(|(p, _)| Reason { partition: Some(p), ..reason.clone() }));
            }
        }
        let known = sources.iter().filter_map(|(shard, source)| {
            let (_, delta) = source.shown.as_ref()?;
            Some(Known { delta, owned: owned[shard] })
        });
        let shown: Vec<Known<'_>> = known.collect();
        let mut whole = combine(&self.inner.stream, &register.origins, &shown);
        whole.reasons.extend(reasons.iter().cloned());
        (whole, reasons)
    }
}

/// The owner with the highest epoch that has reached what was shown. What lacks lost events is not shown before the
/// register that this process knows says so: `losses` of them.
fn choose(
    links: &BTreeMap<u64, LinkState>,
    shown: Option<&(u64, Arc<StreamDelta>)>,
    losses: usize,
) -> Option<(u64, Arc<StreamDelta>)> {
    links.iter().rev().find_map(|(epoch, link)| {
        let delta = link.delta.as_ref().filter(|delta| delta.losses <= losses)?;
        let reached = shown.is_none_or(|(_, shown)| delta.position.covers(&shown.position));
        reached.then(|| (*epoch, Arc::clone(delta)))
    })
}

impl Source {
    /// Why the shard's partitions do not advance; `None` while they do.
    fn standing_still(&self, owner: Option<&Ownership>, states: &BTreeMap<u64, LinkState>) -> Option<Reason> {
        let silent = |epoch: &u64| {
            let away = states.get(epoch)?.away.as_ref()?;
            (away.0.elapsed() >= GRACE).then(|| away.1.clone())
        };
        let reason = |code: &str, message| {
            Some(Reason { code: code.to_owned(), partition: None, from: None, to: None, message })
        };
        let Some(owner) = owner else {
            return reason("no_owner", "no speed worker has claimed the partition yet".to_owned());
        };
        let whose = format!("{} at {}", owner.worker, owner.address.as_deref().unwrap_or("no address"));
        match &self.shown {
            Some((epoch, _)) if states.get(epoch).is_some_and(|s| s.away.is_none()) => return None,
            _ if owner.released => {
                return reason(
                    "no_owner",
                    format!("speed worker {whose} gave the partition up, and nobody else has it"),
                );
            }
            Some((epoch, _)) if *epoch == owner.epoch => {}
            // The newest owner has yet to come.
            _ if silent(&owner.epoch).is_none() => {
                return reason("owner_catching_up", format!("speed worker {whose} takes the partition over"));
            }
            _ => {}
        }
        let why = silent(&owner.epoch)?;
        reason("no_owner", format!("speed worker {whose}, who owns the partition, does not answer: {why}"))
    }
}

#[async_trait]
impl DeltaService for DeltaClient {
    fn watch(&self) -> watch::Receiver<Arc<StreamDelta>> {
        self.inner.sender.subscribe()
    }

    async fn seal(&self) -> Result<Cut, SealError> {
        let register = Arc::clone(&self.inner.state.borrow());
        let owners = register.owners.values().filter(|owner| !owner.released);
        let sealed = join_all(
            owners
                .filter_map(|owner| self.inner.peers.of(&self.inner.stream, owner))
                .map(|peer| async move { peer.seal().await }),
        );
        let sealed: Vec<Cut> = sealed.await.into_iter().flatten().collect();
        if sealed.is_empty() {
            return Err(SealError { stream: self.inner.stream.clone() });
        }
        Ok(sealed.iter().fold(OffsetVector::new(), |all, cut| all.join(cut)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> LinkState {
        let mut delta = combine("s", &OffsetVector::new(), &[]);
        delta.position = [(0, offset)].into();
        LinkState { delta: Some(Arc::new(delta)), away: None }
    }

    /// The epoch that answers when `links` stand there and `shown` was shown last.
    fn chosen(links: &[(u64, i64)], shown: Option<(u64, i64)>) -> Option<u64> {
        let links: BTreeMap<u64, LinkState> = links.iter().map(|(epoch, offset)| (*epoch, at(*offset))).collect();
        let shown = shown.map(|(epoch, offset)| (epoch, at(offset).delta.unwrap()));
        choose(&links, shown.as_ref(), 0).map(|(epoch, _)| epoch)
    }

    #[test]
    fn a_delta_that_may_lack_lost_events_waits_until_they_are_known_as_lost() {
        let mut link = at(5);
        Arc::make_mut(link.delta.as_mut().unwrap()).losses = 1;
        let links = [(1, link)].into();
        assert!(choose(&links, None, 0).is_none());
        assert!(choose(&links, None, 1).is_some());
    }

    #[test]
    fn the_newest_owner_answers_once_it_has_reached_what_was_shown() {
        assert_eq!(chosen(&[(1, 5), (2, 3)], Some((1, 5))), Some(1));
        assert_eq!(chosen(&[(1, 5), (2, 5)], Some((1, 5))), Some(2));
        assert_eq!(chosen(&[(1, 9), (2, 3)], None), Some(2), "nothing has been answered yet");
        assert_eq!(chosen(&[(2, 3)], Some((1, 5))), None, "what was shown stays");
        assert_eq!(chosen(&[(1, 4)], Some((1, 5))), None, "a restarted owner has to catch up too");
        assert_eq!(chosen(&[], Some((1, 5))), None);
    }
}
