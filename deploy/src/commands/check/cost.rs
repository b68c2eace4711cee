//! What it costs to change over to the views as they are configured, from what the storage has recorded.

use std::collections::BTreeMap;

use watershed_shared::catalog::{StreamState, ViewState};
use watershed_shared::config::Config;
use watershed_shared::master::{Error, MasterDataset};
use watershed_shared::offsets::OffsetVector;
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

    /// What is archived of each stream that is; and what is wrong with the columns of one: it could not be started.
    pub(super) async fn archived(&self, config: &Config) -> BTreeMap<String, Result<OffsetVector, Error>> {
        let Self::Recorded(storage) = self else { return BTreeMap::new() };
        let mut archived = BTreeMap::new();
        for (name, stream) in &config.streams {
            let look = async {
                match MasterDataset::open_existing(storage, stream).await? {
                    Some(master) => Ok(Some(master.snapshot().await?.archived_until().clone())),
                    None => Ok(None),
                }
            };
            if let Some(found) = look.await.transpose() {
                archived.insert(name.clone(), found);
            }
        }
        archived
    }

    pub(super) async fn of(&self, view: &str, compiled: &CompiledView, archived: Option<&OffsetVector>) -> Change {
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
            Ok((view, stream)) => decide(&view, &stream, archived, compiled.definition()),
            Err(error) => {
                Change { reason: Some(format!("{:#}", anyhow::Error::from(error))), ..Change::of(ChangeKind::Unknown) }
            }
        }
    }
}

/// What the next start does with the definition `configured`.
fn decide(
    view: &ViewState,
    stream: &StreamState,
    archived: Option<&OffsetVector>,
    configured: &watershed_shared::names::DefinitionHash,
) -> Change {
    let kind = match &view.active {
        None => ChangeKind::New,
        Some(active) if active == configured => return Change::of(ChangeKind::Unchanged),
        Some(_) if view.configured.as_ref() == Some(configured) => ChangeKind::Building,
        Some(_) if view.knows(configured) => ChangeKind::Superseded,
        Some(_) => ChangeKind::Changed,
    };
    // Offsets, those of dead letters and control records included.
    let events = archived.map(|archived| {
        let below = |partition| stream.origins.get(partition).map_or(0, |origin| origin.0);
        archived.iter().map(|(partition, next)| u64::try_from(next.0 - below(partition)).unwrap_or(0)).sum()
    });
    Change { events, ..Change::of(kind) }
}
