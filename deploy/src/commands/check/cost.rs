//! What it costs to change over to the views as they are configured, from what the storage has recorded.

use watershed_shared::catalog::{StreamState, ViewState};
use watershed_shared::config::Config;
use watershed_shared::register::Register;
use watershed_shared::storage::Storage;
use watershed_shared::view::CompiledView;

use super::report::{Change, ChangeKind};

/// Reads the registers; writes nothing.
#[derive(Debug)]
pub(super) enum Costs {
    /// Nothing has been started with this storage.
    Untouched,
    Recorded(Box<Storage>),
    Unknown(String),
}

impl Costs {
    pub(super) fn open(config: &Config) -> Self {
        let url = &config.storage_url;
        if url.scheme() == "file" {
            // To open it would create it.
            match url.to_file_path().map(|path| path.try_exists()) {
                Ok(Ok(false)) => return Self::Untouched,
                Ok(Err(error)) => return Self::Unknown(format!("{url}: {error}")),
                _ => {}
            }
        }
        match Storage::open(url) {
            Ok(storage) => Self::Recorded(Box::new(storage)),
            Err(error) => Self::Unknown(format!("{:#}", anyhow::Error::from(error))),
        }
    }

    pub(super) async fn of(&self, view: &str, compiled: &CompiledView) -> Change {
        let storage = match self {
            Self::Untouched => return Change::of(ChangeKind::New),
            Self::Unknown(reason) => return Change { reason: Some(reason.clone()), ..Change::of(ChangeKind::Unknown) },
            Self::Recorded(storage) => storage,
        };
        let read = async {
            let views: Register<ViewState> = Register::open(storage, "views", view);
            let streams: Register<StreamState> = Register::open(storage, "streams", compiled.stream());
            Ok::<_, watershed_shared::register::Error>((views.state().await?, streams.state().await?))
        };
        match read.await {
            Ok((view, stream)) => decide(&view, &stream, compiled.definition()),
            Err(error) => {
                Change { reason: Some(format!("{:#}", anyhow::Error::from(error))), ..Change::of(ChangeKind::Unknown) }
            }
        }
    }
}

/// What the next start does with the definition `configured`.
fn decide(view: &ViewState, stream: &StreamState, configured: &watershed_shared::names::DefinitionHash) -> Change {
    let kind = match &view.active {
        None => return Change::of(ChangeKind::New),
        Some(active) if active == configured => return Change::of(ChangeKind::Unchanged),
        Some(_) if view.configured.as_ref() == Some(configured) => ChangeKind::Building,
        Some(_) if view.definitions.contains_key(configured) => ChangeKind::Superseded,
        Some(_) => ChangeKind::Changed,
    };
    let archived = view.generations.iter().map(|generation| &generation.cut).max_by_key(|cut| total(cut));
    // Offsets, control records included: an upper bound.
    let events = archived.map(|cut| {
        let below = |partition| stream.origins.get(partition).map_or(0, |origin| origin.0);
        cut.iter().map(|(partition, next)| u64::try_from(next.0 - below(partition)).unwrap_or(0)).sum()
    });
    Change { events, ..Change::of(kind) }
}

fn total(cut: &watershed_shared::offsets::Cut) -> i64 {
    cut.iter().map(|(_, next)| next.0).sum()
}
