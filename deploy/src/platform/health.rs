//! What a process without the serving layer answers over HTTP: whether it lives, is ready, and how it does.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::http::StatusCode;
use warp::reply::Response;
use warp::{Filter, Reply};
use watershed_serving_layer::{GRACE, serve_routes};

/// How a process does.
pub(super) trait Health: Send + Sync + fmt::Debug {
    /// # Errors
    /// What is missing.
    fn ready(&self) -> Result<(), String>;

    /// For `/v1/status`.
    fn status(&self) -> Value;

    /// For `/metrics`: name, help, labels with value.
    fn gauges(&self) -> Vec<Gauge>;
}

/// A metric in Prometheus' words.
#[derive(Debug)]
pub(super) struct Gauge {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    /// Labels as they stand in the braces, and the value.
    pub(super) values: Vec<(String, f64)>,
}

fn document(status: StatusCode, document: &Value) -> Response {
    warp::reply::with_status(warp::reply::json(document), status).into_response()
}

fn text(gauges: Vec<Gauge>) -> String {
    let mut out = String::new();
    for Gauge { name, help, values } in gauges {
        out += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
        for (labels, value) in values {
            out += &format!("{name}{{{labels}}} {value}\n");
        }
    }
    out
}

/// The future that answers on `listener` until `stop`; `more`: further routes.
pub(super) fn serve_health(
    listener: TcpListener,
    health: Arc<dyn Health>,
    more: Option<BoxedFilter<(Response,)>>,
    stop: CancellationToken,
) -> impl Future<Output = ()> {
    let with = move |health: &Arc<dyn Health>| {
        let health = Arc::clone(health);
        warp::any().map(move || Arc::clone(&health))
    };
    let get = || warp::get().or(warp::head()).unify();
    let alive = warp::path!("healthz").and(get()).map(|| document(StatusCode::OK, &json!({ "status": "alive" })));
    let ready =
        warp::path!("readyz").and(get()).and(with(&health)).map(|health: Arc<dyn Health>| match health.ready() {
            Ok(()) => document(StatusCode::OK, &json!({ "status": "ready" })),
            Err(missing) => {
                let error = json!({ "error": { "code": "not_ready", "message": missing } });
                document(StatusCode::SERVICE_UNAVAILABLE, &error)
            }
        });
    let status = warp::path!("v1" / "status").and(get()).and(with(&health)).map(|health: Arc<dyn Health>| {
        let mut status = health.status();
        let ready = health.ready();
        status["ready"] = json!(ready.is_ok());
        status["missing"] = json!(ready.err());
        document(StatusCode::OK, &status)
    });
    let metrics = warp::path!("metrics").and(get()).and(with(&health)).map(|health: Arc<dyn Health>| {
        warp::reply::with_header(text(health.gauges()), "content-type", "text/plain; version=0.0.4; charset=utf-8")
            .into_response()
    });
    let mut routes = alive.or(ready).unify().or(status).unify().or(metrics).unify().boxed();
    if let Some(more) = more {
        routes = routes.or(more).unify().boxed();
    }
    let elsewhere = warp::any().map(|| {
        let message =
            "this process has no such route: views and queries are answered by `--role serving` and `--role all`";
        document(StatusCode::NOT_FOUND, &json!({ "error": { "code": "unknown_route", "message": message } }))
    });
    let routes = routes.or(elsewhere).unify();
    serve_routes(routes.boxed(), listener, GRACE, stop)
}

/// Binds `listen`; `section`: where it is configured.
///
/// # Errors
/// If it cannot be bound.
pub(super) async fn bind(listen: SocketAddr, section: &str) -> Result<TcpListener> {
    TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}: stop the other program or set another `listen` under [{section}]")
    })
}
