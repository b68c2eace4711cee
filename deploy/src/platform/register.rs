//! Following a register: the state of its head, as it moves on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use watershed_shared::register::{Record, Register, RegisterState};
use watershed_shared::task;

use super::stages::Stage;

/// How often a register is looked at for records of other processes; own records are seen at once.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);

/// The state of the head of `register`, now and later, until the stage ends.
///
/// # Errors
/// If the register can't be read now.
pub(super) async fn follow<S: RegisterState>(
    register: &Register<S>,
    stage: &mut Stage,
) -> Result<watch::Receiver<Arc<S>>> {
    let mut records = register.watch(FOLLOW_INTERVAL).await?;
    let state = |records: &mut watch::Receiver<Option<Arc<Record<S>>>>| {
        let head = records.borrow_and_update().clone();
        Arc::new(head.map(|record| record.state.clone()).unwrap_or_default())
    };
    let (sender, receiver) = watch::channel(state(&mut records));
    let stop = stage.stop.clone();
    stage.tasks.push(task::spawn("follow register", async move {
        while let Some(Ok(())) = stop.run_until_cancelled(records.changed()).await {
            sender.send_replace(state(&mut records));
        }
    }));
    Ok(receiver)
}
