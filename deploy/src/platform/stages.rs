//! The order in which the parts of a process end.

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Stops what takes requests first and what makes things durable last.
#[derive(Debug, Default)]
pub(super) struct Shutdown {
    stages: Vec<Stage>,
}

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) stop: CancellationToken,
    pub(super) tasks: Vec<JoinHandle<()>>,
}

impl Shutdown {
    /// A new stage that is stopped before all earlier ones.
    pub(super) fn stage(&mut self) -> &mut Stage {
        self.stages.push(Stage { stop: CancellationToken::new(), tasks: Vec::new() });
        self.stages.last_mut().expect("just pushed")
    }

    pub(super) async fn run(self) {
        for stage in self.stages.into_iter().rev() {
            stage.stop.cancel();
            for task in stage.tasks {
                // A panic has been reported by the task itself.
                drop(task.await);
            }
        }
    }
}
