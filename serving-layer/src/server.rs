//! The listener behind which the routes stand.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use warp::filters::BoxedFilter;
use warp::hyper::rt::Executor;
use warp::reply::Response;
use watershed_shared::{clock, task};

use crate::http::routes;
use crate::serving::Serving;

/// How long clients that have not got their answer when the process is to end may take. What makes events durable ends
/// after them, and it must have ended before whoever ends the process loses patience.
pub const GRACE: Duration = Duration::from_secs(10);

/// After a connection could not be accepted: perhaps one of the process's files is closed meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Binds `listen` (port 0: any free one) and answers as [`serve_routes`] does.
///
/// Answers the address, and the future that serves.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    serving: Serving,
    listen: SocketAddr,
    shutdown: CancellationToken,
) -> Result<(SocketAddr, impl Future<Output = ()> + Send)> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let grace = serving.inner.input.settings.grace;
    Ok((address, serve_routes(routes(serving), listener, grace, shutdown)))
}

/// Answers on `listener` until `shutdown`.
///
/// Requests under way then are answered to their end if that comes within `grace`. What is left after it (a client that
/// reads or sends no more, a request that takes longer) is dropped, with whatever was being done for it: on return nothing
/// that came over `listener` runs any longer.
pub async fn serve_routes(
    routes: BoxedFilter<(Response,)>,
    listener: TcpListener,
    grace: Duration,
    shutdown: CancellationToken,
) {
    let (work, graceful) = (Work::default(), GracefulShutdown::new());
    let http = Builder::new(work.clone());
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let service = TowerToHyperService::new(warp::service(routes.clone()));
                let connection = http.serve_connection(TokioIo::new(stream), service).into_owned();
                let connection = graceful.watch(connection);
                work.execute(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection ended");
                    }
                });
            }
            Err(error) => refused(&error).await,
        }
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = clock::sleep(grace) => {
            let (left, grace_seconds) = (work.tasks.len(), grace.as_secs_f64());
            tracing::warn!(left, grace_seconds, "requests are not over: they are dropped, for the process is ending");
        }
    }
    work.end().await;
}

async fn refused(error: &Error) {
    // The client's doing.
    if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset)
    {
        return;
    }
    tracing::error!(%error, "cannot accept a connection");
    clock::sleep(ACCEPT_PAUSE).await;
}

/// What runs for clients: each connection, and each request of those that have several at a time.
#[derive(Debug, Clone, Default)]
struct Work {
    tasks: TaskTracker,
    end: CancellationToken,
}

impl Work {
    /// Drops what runs, and waits until it is dropped.
    async fn end(self) {
        self.end.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Work {
    fn execute(&self, work: F) {
        let end = self.end.clone();
        let work = async move {
            // `None`: it was dropped.
            end.run_until_cancelled(work).await.unwrap_or_default();
        };
        task::spawn("http", self.tasks.track_future(work));
    }
}
