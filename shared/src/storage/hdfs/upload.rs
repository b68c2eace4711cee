//! An object that comes in parts.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::{Error, MultipartUpload, PutPayload, PutResult, Result, UploadPart};
use tokio::sync::Mutex;

use super::error::STORE;
use super::staged::{Content, Staged};

/// Parts go into one file, in the order in which they were handed over, whichever comes first.
#[derive(Debug)]
pub(super) struct Upload {
    state: Arc<Mutex<State>>,
    target: String,
    parts: usize,
}

#[derive(Debug)]
struct State {
    /// Taken away by the end, and by a part for as long as it is written: one that was given up in the middle leaves
    /// nothing that could be completed.
    staged: Option<Staged>,
    /// Parts that came before their turn.
    waiting: BTreeMap<usize, PutPayload>,
    next: usize,
}

impl State {
    /// Writes what can be written in order.
    async fn write(&mut self) -> Result<()> {
        while let Some(part) = self.waiting.remove(&self.next) {
            let mut staged =
                self.staged.take().ok_or_else(|| broken("the upload has ended, or one of its parts failed"))?;
            for chunk in &part {
                staged.write(chunk.clone()).await?;
            }
            self.staged = Some(staged);
            self.next += 1;
        }
        Ok(())
    }
}

impl Upload {
    pub(super) fn new(staged: Staged, target: String) -> Self {
        let state = State { staged: Some(staged), waiting: BTreeMap::new(), next: 0 };
        Self { state: Arc::new(Mutex::new(state)), target, parts: 0 }
    }
}

fn broken(what: &'static str) -> Error {
    Error::Generic { store: STORE, source: what.into() }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (state, index) = (Arc::clone(&self.state), self.parts);
        self.parts += 1;
        Box::pin(async move {
            let mut state = state.lock().await;
            state.waiting.insert(index, data);
            state.write().await
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let mut state = self.state.lock().await;
        if state.next != self.parts {
            return Err(broken("a part of the upload is missing, or failed"));
        }
        let staged = state.staged.take().ok_or_else(|| broken("the upload has ended, or one of its parts failed"))?;
        staged.publish(&self.target, true, Content::Length).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> Result<()> {
        let mut state = self.state.lock().await;
        state.waiting.clear();
        // Without it a part has failed, and what it wrote is being removed.
        if let Some(staged) = state.staged.take() {
            staged.discard().await?;
        }
        Ok(())
    }
}
