//! Following a register.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Error, Record, Register, RegisterState};
use crate::{clock, task};

impl<S: RegisterState> Register<S> {
    /// Follows the head: the receiver has the head of now, and then each later one, at most `interval` late; heads that
    /// follow each other faster than that may be left out. `None` while there is no record.
    ///
    /// What this process appends is seen at once. Ends when all receivers are dropped. While the register can't be read the
    /// last head stays, and the error is logged.
    ///
    /// # Errors
    /// As [`head`](Self::head), for the first head alone.
    pub async fn watch(&self, interval: Duration) -> Result<watch::Receiver<Option<Arc<Record<S>>>>, Error> {
        let (sender, receiver) = watch::channel(self.head().await?);
        let register = self.clone();
        task::spawn("register follower", async move {
            let mut failing = false;
            loop {
                tokio::select! {
                    () = sender.closed() => return,
                    () = register.0.appended.notified() => {}
                    () = clock::sleep(interval) => {}
                }
                match register.head().await {
                    Ok(head) => {
                        failing = false;
                        sender.send_if_modified(|seen| {
                            let newer = number(&head) > number(seen);
                            if newer {
                                *seen = head;
                            }
                            newer
                        });
                    }
                    Err(error) if failing => tracing::debug!(?register, %error, "still cannot read a register"),
                    Err(error) => {
                        failing = true;
                        tracing::error!(?register, %error, "cannot read a register; its last head stays in force");
                    }
                }
            }
        });
        Ok(receiver)
    }
}

fn number<S: RegisterState>(head: &Option<Arc<Record<S>>>) -> u64 {
    head.as_ref().map_or(0, |r| r.number)
}
