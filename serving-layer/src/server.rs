//! The listener behind which the routes stand.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::http::routes;
use crate::serving::Serving;

/// Binds `listen` (port 0: any free one) and answers until `shutdown`; requests under way are answered to their end.
///
/// Answers the address, and the future that serves.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    serving: Serving,
    listen: SocketAddr,
    shutdown: CancellationToken,
) -> std::io::Result<(SocketAddr, impl Future<Output = ()> + Send)> {
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let server = warp::serve(routes(serving)).incoming(listener);
    Ok((address, server.graceful(shutdown.cancelled_owned()).run()))
}
