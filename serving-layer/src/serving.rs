//! The serving layer as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use watershed_shared::mutant::{self, Mutant};
use watershed_shared::offsets::OffsetVector;
use watershed_shared::run::PageCache;
use watershed_shared::{clock, task};

use crate::engine::Engine;
use crate::error::{Code, Error, Result};
use crate::front::{Files, Front, StreamAnswer, ViewAnswer};
use crate::input::{ServingInput, StreamInput, ViewInput};
use crate::metrics::Metrics;

/// Answers requests. Cheap to clone; all clones share the positions that have been answered.
#[derive(Debug, Clone)]
pub struct Serving {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub input: ServingInput,
    pub engine: Engine,
    pub metrics: Metrics,
    pub answers: BTreeMap<String, watch::Receiver<Arc<StreamAnswer>>>,
    /// Of all generations together.
    pub pages: Arc<PageCache>,
    /// Taken by `run`.
    fronts: Mutex<Vec<Front>>,
    /// Permits for live connections.
    pub live: Arc<Semaphore>,
    /// A permit for each byte of a body that is being published.
    pub publishing: Arc<Semaphore>,
    pub started_at: clock::Instant,
}

impl Serving {
    /// Puts the parts together; nothing answers before [`run`](Self::run).
    ///
    /// # Errors
    /// When the threads for queries or the folder for spilling cannot be had.
    pub fn new(input: ServingInput) -> std::io::Result<Self> {
        let engine = Engine::new(&input.storage, input.settings.query.clone())?;
        let pages = PageCache::new(input.settings.query.page_cache_bytes);
        let (mut fronts, mut answers) = (Vec::new(), BTreeMap::new());
        for (name, stream) in &input.streams {
            let of_stream = || input.views.iter().filter(|(_, v)| v.stream == *name);
            let sender = Front::channel(name, of_stream().map(|(view, _)| view.clone()));
            answers.insert(name.clone(), sender.subscribe());
            fronts.push(Front {
                stream: name.clone(),
                delta: stream.delta.watch(),
                state: stream.state.clone(),
                log: stream.log.clone(),
                views: of_stream().map(|(view, v)| (view.clone(), v.register.clone())).collect(),
                definitions: Arc::clone(&input.definitions),
                storage: input.storage.clone(),
                pages: Arc::clone(&pages),
                answers: sender,
            });
        }
        let inner = Inner {
            engine,
            metrics: Metrics::default(),
            answers,
            pages,
            fronts: Mutex::new(fronts),
            started_at: clock::Instant::now(),
            live: Arc::new(Semaphore::new(input.settings.max_live)),
            publishing: Arc::new(Semaphore::new(input.settings.publish_memory_bytes.min(Semaphore::MAX_PERMITS))),
            input,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Follows the streams until `shutdown`. To be called once; a second call returns at once.
    pub async fn run(&self, shutdown: CancellationToken) {
        let fronts = std::mem::take(&mut *self.inner.fronts.lock());
        let mut tasks: Vec<_> =
            fronts.into_iter().map(|front| task::spawn("serving front", front.run(shutdown.clone()))).collect();
        let input = &self.inner.input;
        let views = input
            .views
            .iter()
            .map(|(name, view)| (name.clone(), (self.inner.answers[&view.stream].clone(), view.register.clone())));
        let files = Files::new(views.collect(), Arc::clone(&input.builds));
        tasks.push(task::spawn("files of generations", files.run(shutdown)));
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a stream's front ended");
            }
        }
    }

    /// What answers for a stream now and later.
    pub fn answers(&self, stream: &str) -> Option<watch::Receiver<Arc<StreamAnswer>>> {
        self.inner.answers.get(stream).cloned()
    }

    /// Whether every view can be answered and the process has caught up since its start (or `ready_timeout` is over).
    ///
    /// # Errors
    /// What is missing.
    pub fn ready(&self) -> std::result::Result<(), String> {
        let mut missing = Vec::new();
        let patient = self.inner.started_at.elapsed() < self.inner.input.settings.ready_timeout;
        for (stream, answers) in &self.inner.answers {
            let now = answers.borrow();
            missing
                .extend(now.unanswerable.iter().map(|(view, why)| format!("view `{view}` cannot be answered: {why}")));
            missing.extend(
                now.views.iter().filter_map(|(view, answer)| Some(format!("view `{view}`: {}", answer.fault()?))),
            );
            if patient && self.is_followed(stream) && !now.caught_up() {
                missing.push(format!("stream `{stream}` has not caught up since the start"));
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
    }

    pub(crate) fn view(&self, view: &str) -> Result<&ViewInput> {
        let views = &self.inner.input.views;
        views.get(view).ok_or_else(|| Error::unknown(Code::UnknownView, "view", view, views.keys().map(String::as_str)))
    }

    pub(crate) fn stream(&self, stream: &str) -> Result<&StreamInput> {
        let streams = &self.inner.input.streams;
        let known = streams.keys().map(String::as_str);
        streams.get(stream).ok_or_else(|| Error::unknown(Code::UnknownStream, "stream", stream, known))
    }

    /// Whether a view reads the stream, and with it the speed layer.
    pub(crate) fn is_followed(&self, stream: &str) -> bool {
        self.inner.input.views.values().any(|view| view.stream == stream)
    }

    /// # Errors
    /// `unknown_stream`; `bad_parameter` for offsets that there cannot be. A partition that is not known may have been
    /// added a moment ago: it is waited for.
    pub(crate) fn check_wait(&self, stream: &str, wanted: &OffsetVector) -> Result<()> {
        self.stream(stream)?;
        match wanted.iter().find(|(_, offset)| offset.0 < 0) {
            None => Ok(()),
            Some((partition, offset)) => {
                let message = format!("offset {offset} of partition {partition} is negative");
                Err(Error::bad_parameter("wait_for", message))
            }
        }
    }

    /// What to say of a partition that was waited for in vain, and that there may not be at all.
    fn unknown_partition(&self, stream: &str, wanted: &OffsetVector) -> Option<String> {
        let origins = self.stream(stream).ok()?.state.borrow().origins.clone();
        let (partition, _) = wanted.iter().find(|(partition, _)| origins.get(*partition).is_none())?;
        let known: Vec<String> = origins.iter().map(|(p, _)| p.to_string()).collect();
        Some(format!("; no partition {partition} is known of stream `{stream}`, only {}", known.join(", ")))
    }

    pub(crate) fn now(&self, stream: &str) -> Result<Arc<StreamAnswer>> {
        self.stream(stream)?;
        Ok(Arc::clone(&self.inner.answers[stream].borrow()))
    }

    /// The answers of these views of one stream at one common position that has reached `wait_for`.
    ///
    /// # Errors
    /// `not_ready` when one cannot be answered at all; `timeout` with the position, and the view that is behind.
    pub(crate) async fn at_one_position(
        &self,
        stream: &str,
        views: &[&str],
        wait_for: Option<&OffsetVector>,
        deadline: clock::Instant,
    ) -> Result<Vec<Arc<ViewAnswer>>> {
        self.stream(stream)?;
        let mut answers = self.inner.answers[stream].clone();
        loop {
            // An answer that nobody renews would grow old in silence.
            if answers.has_changed().is_err() {
                let message =
                    format!("stream `{stream}` is no longer followed: the process is ending, or its log says why");
                return Err(Error::new(Code::NotReady, message));
            }
            let now = Arc::clone(&answers.borrow_and_update());
            let missing = match common(&now, views, wait_for) {
                Ok(found) => return Ok(found),
                Err(error) if error.code == Code::NotReady => return Err(error),
                Err(error) => error,
            };
            match tokio::time::timeout_at(deadline, answers.changed()).await {
                Ok(Ok(())) => {}
                // Timed out, or the process is ending.
                _ => {
                    let unknown = wait_for.and_then(|wanted| self.unknown_partition(stream, wanted));
                    let message = missing.message + unknown.as_deref().unwrap_or_default();
                    return Err(Error { message, ..missing });
                }
            }
        }
    }
}

/// The views' answers when they stand at one position at or past `wait_for`; else why not, as it will be said when the
/// time is over.
fn common(now: &StreamAnswer, views: &[&str], wait_for: Option<&OffsetVector>) -> Result<Vec<Arc<ViewAnswer>>> {
    let mut found = Vec::with_capacity(views.len());
    for view in views {
        match now.views.get(*view) {
            Some(answer) => found.push(Arc::clone(answer)),
            None => {
                let why = now.unanswerable.get(*view).map_or("it is not known", String::as_str);
                return Err(Error::new(Code::NotReady, format!("view `{view}` cannot be answered yet: {why}")));
            }
        }
    }
    let farthest = found.iter().fold(OffsetVector::new(), |farthest, a| farthest.join(&a.position));
    if let Some(behind) = found.iter().find(|a| a.position != farthest) {
        let message = format!(
            "view `{}` is behind the others of stream `{}`, so that the statement cannot read them at one position: it stands at {}, they at {farthest}",
            behind.view, now.stream, behind.position
        );
        return Err(Error::new(Code::Timeout, message).at(behind.position.clone()));
    }
    if let Some(wanted) = wait_for.filter(|_| !mutant::is(Mutant::WaitForEarly)) {
        let position = if views.is_empty() { &now.position } else { &farthest };
        if !position.covers(wanted) {
            let message = format!("stream `{}` has not reached wait_for {wanted}: it stands at {position}", now.stream);
            return Err(Error::new(Code::Timeout, message).at(position.clone()));
        }
    }
    Ok(found)
}
