//! The way to a NameNode: a limit for each call, and another client after one that was not answered.

use std::time::Duration;

use hdfs_native::client::FileStatus;
use hdfs_native::{Client, ClientBuilder, HdfsError};
use object_store::path::Path;
use parking_lot::RwLock;
use url::Url;

use super::error::{Failure, Problem};

/// A client of the name service of one URL, and the folder under which everything lies.
#[derive(Debug)]
pub(super) struct Connection {
    /// `hdfs://host:port` or `hdfs://service`.
    service: String,
    /// Without a slash at its end; the root folder is empty.
    root: String,
    limit: Duration,
    client: RwLock<Numbered>,
}

#[derive(Debug, Clone)]
struct Numbered {
    client: Client,
    number: u64,
}

impl Connection {
    /// Nothing is sent yet. `limit`: the time that a call to a NameNode may take.
    pub(super) fn new(url: &Url, limit: Duration) -> Result<Self, HdfsError> {
        let host = url.host_str().unwrap_or_default();
        let service = match url.port() {
            Some(port) => format!("hdfs://{host}:{port}"),
            None => format!("hdfs://{host}"),
        };
        let client = client(&service, limit, false)?;
        let root = match Path::from_url_path(url.path()).map_err(|e| HdfsError::InvalidPath(e.to_string()))? {
            path if path.as_ref().is_empty() => String::new(),
            path => format!("/{path}"),
        };
        Ok(Self { service, root, limit, client: RwLock::new(Numbered { client, number: 0 }) })
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// The name in HDFS of the object at `location`.
    pub(super) fn absolute(&self, location: &str) -> String {
        format!("{}/{location}", self.root)
    }

    /// For messages.
    pub(super) fn shown(&self, path: &str) -> String {
        format!("{}{path}", self.service)
    }

    /// Makes one call, within the limit. A write that failed may have happened, or happen later.
    pub(super) async fn call<T, F>(
        &self,
        operation: &'static str,
        path: &str,
        call: impl FnOnce(Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, HdfsError>>,
    {
        let used = self.client.read().clone();
        match self.within(self.limit, operation, path, call(used.client)).await {
            Err(failure) if failure.problem == Problem::TimedOut => {
                self.renew(used.number);
                Err(failure)
            }
            other => other,
        }
    }

    /// Waits for what a DataNode does, `limit` at most.
    pub(super) fn within<T>(
        &self,
        limit: Duration,
        operation: &'static str,
        path: &str,
        work: impl Future<Output = Result<T, HdfsError>>,
    ) -> impl Future<Output = Result<T, Failure>> {
        // The client's futures have tens of kilobytes: none of ours shall hold one.
        let work = tokio::time::timeout(limit, Box::pin(work));
        async move {
            match work.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(error)) => Err(Failure::new(operation, &self.shown(path), &error)),
                Err(_) => Err(Failure::of(operation, &self.shown(path), Problem::TimedOut)),
            }
        }
    }

    pub(super) async fn status(&self, path: &str) -> Result<Option<FileStatus>, Failure> {
        match self.call("look up the file", path, async |client| client.get_file_info(path).await).await {
            Ok(status) if status.isdir => Ok(None),
            Ok(status) => Ok(Some(status)),
            Err(failure) if failure.problem == Problem::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// SUBTLE: all calls share a connection. One to a host that vanished is only given up by TCP after a quarter of an
    /// hour, and the next one would first try the same host again: so another client takes over, which tries the
    /// NameNodes of a name service in random order. Files that are being written keep the old one.
    fn renew(&self, number: u64) {
        let mut current = self.client.write();
        if current.number != number {
            return;
        }
        match client(&self.service, self.limit, true) {
            Ok(client) => *current = Numbered { client, number: number + 1 },
            Err(error) => tracing::warn!(service = self.service, %error, "keeping a client that was not answered"),
        }
    }
}

fn client(service: &str, limit: Duration, any_order: bool) -> Result<Client, HdfsError> {
    let name = service.trim_start_matches("hdfs://");
    let mut config = vec![
        // A reader goes to another DataNode after two of these: it must be able to within one limit.
        ("dfs.client.socket-timeout".to_owned(), (limit.as_millis() / 4).to_string()),
        // Who waits longer is served by the retries above.
        ("dfs.client.failover.max.attempts".to_owned(), "4".to_owned()),
        ("dfs.client.failover.sleep.base.millis".to_owned(), "100".to_owned()),
        ("dfs.client.failover.sleep.max.millis".to_owned(), "1000".to_owned()),
    ];
    if any_order {
        config.push((format!("dfs.client.failover.random.order.{name}"), "true".to_owned()));
    }
    ClientBuilder::new().with_url(service).with_config(config).build()
}
