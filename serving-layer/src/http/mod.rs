//! The HTTP interface: routes, and what they take and give.

mod body;
mod catalog;
mod encoding;
mod live;
mod openapi;
mod operate;
mod page;
mod params;
mod publish;
mod query;
mod reply;

use std::convert::Infallible;
use std::future::Future;
use std::str::{FromStr, Utf8Error};

use percent_encoding::percent_decode_str;
use warp::filters::BoxedFilter;
use warp::http::StatusCode;
use warp::http::header::{ALLOW, HeaderValue};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};
use watershed_shared::clock;

use crate::error::{Code, Error, Result};
use crate::serving::Serving;

pub use openapi::ROUTES;

/// All routes of the contract. Never rejects: what is wrong is answered as an error.
pub fn routes(serving: Serving) -> BoxedFilter<(Response,)> {
    let v1 = || warp::path("v1");
    let routes = [
        // Asking.
        get(&serving, v1().and(warp::path("views")).and(warp::path::end()), catalog::views),
        get_one(&serving, v1().and(warp::path!("views" / Segment)), query::view),
        get_one(&serving, v1().and(warp::path!("views" / Segment / "schema")), catalog::schema),
        // Not HEAD: it would follow the view for nobody.
        v1().and(warp::path!("views" / Segment / "live"))
            .and(warp::get())
            .and(request(&serving))
            .then(|Segment(view): Segment, request: Request| answer(live::live(request, view)))
            .boxed(),
        v1().and(warp::path!("query"))
            .and(warp::post())
            .and(request(&serving))
            .and(warp::body::stream())
            .then(|request: Request, body| {
                answer(async move {
                    let bytes = body::small(&request, body).await?;
                    query::query(request, bytes).await
                })
            })
            .boxed(),
        // Publishing.
        v1().and(warp::path!("streams" / Segment))
            .and(warp::post())
            .and(request(&serving))
            .and(warp::body::stream())
            .then(|Segment(stream): Segment, request: Request, body| {
                answer(async move {
                    let records = body::records(&request, body).await?;
                    publish::publish(request, stream, records).await
                })
            })
            .boxed(),
        v1().and(warp::path!("streams" / Segment / "accept-loss"))
            .and(warp::post())
            .and(request(&serving))
            .then(|Segment(stream): Segment, request: Request| answer(operate::accept_loss(request, stream)))
            .boxed(),
        // Builds and generations.
        v1().and(warp::path!("views" / Segment / "rebuilds"))
            .and(warp::post())
            .and(request(&serving))
            .and(warp::body::stream())
            .then(|Segment(view): Segment, request: Request, body| {
                answer(async move {
                    let bytes = body::small(&request, body).await?;
                    operate::start(request, view, bytes).await
                })
            })
            .boxed(),
        v1().and(warp::path!("views" / Segment / "schedule"))
            .and(warp::put())
            .and(request(&serving))
            .and(warp::body::stream())
            .then(|Segment(view): Segment, request: Request, body| {
                answer(async move {
                    let bytes = body::small(&request, body).await?;
                    operate::schedule(request, view, bytes).await
                })
            })
            .boxed(),
        get(&serving, v1().and(warp::path!("rebuilds")), operate::builds),
        get_one(&serving, v1().and(warp::path!("rebuilds" / Segment)), operate::build),
        v1().and(warp::path!("rebuilds" / Segment))
            .and(warp::delete())
            .and(request(&serving))
            .then(|Segment(id): Segment, request: Request| answer(operate::cancel(request, id)))
            .boxed(),
        get_one(&serving, v1().and(warp::path!("views" / Segment / "generations")), catalog::generations),
        v1().and(warp::path!("views" / Segment / "generations" / Segment / "activate"))
            .and(warp::post())
            .and(request(&serving))
            .then(|Segment(view): Segment, Segment(generation): Segment, request: Request| {
                answer(operate::activate(request, view, generation))
            })
            .boxed(),
        v1().and(warp::path!("views" / Segment / "generations" / Segment / "diff" / Segment))
            .and(warp::get())
            .and(request(&serving))
            .then(|Segment(view): Segment, Segment(a): Segment, Segment(b): Segment, request: Request| {
                answer(operate::diff(request, view, a, b))
            })
            .boxed(),
        v1().and(warp::path!("views" / Segment / "verify"))
            .and(warp::post())
            .and(request(&serving))
            .then(|Segment(view): Segment, request: Request| answer(operate::verify(request, view)))
            .boxed(),
        // Operation.
        get(&serving, v1().and(warp::path!("status")), operate::status),
        get(&serving, warp::path!("metrics"), operate::metrics),
        get(&serving, warp::path!("healthz"), operate::healthz),
        get(&serving, warp::path!("readyz"), operate::readyz),
        get(&serving, warp::path!("openapi.json"), operate::openapi),
        get(&serving, warp::path::end(), page::page),
    ];
    // The first are tried first, without a look at the others.
    let all = routes.into_iter().rev().reduce(|rest, route| route.or(rest).unify().boxed()).expect("there are routes");
    let metered = serving.clone();
    let metered = warp::log::custom(move |info| {
        let route = openapi::pattern(info.method().as_str(), info.path());
        metered.inner.metrics.request(route, info.status().as_u16(), info.elapsed());
    });
    let answered = all.recover(rejected).unify().with(metered).map(warp::Reply::into_response);
    warp::path::full().and(answered).map(with_allow).boxed()
}

/// A segment of a path, percent-decoded.
#[derive(Debug)]
struct Segment(String);

impl FromStr for Segment {
    type Err = Utf8Error;

    fn from_str(text: &str) -> std::result::Result<Self, Utf8Error> {
        Ok(Self(percent_decode_str(text).decode_utf8()?.into_owned()))
    }
}

/// What a path does take, as RFC 9110 wants it beside each 405.
fn with_allow(path: FullPath, mut response: Response) -> Response {
    if response.status() == StatusCode::METHOD_NOT_ALLOWED
        && let Ok(allowed) = HeaderValue::from_str(&openapi::allowed(path.as_str()).join(", "))
    {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// What every handler gets.
#[derive(Debug)]
pub(crate) struct Request {
    pub serving: Serving,
    /// The query string.
    pub query: String,
    pub accept: Option<String>,
    pub last_event_id: Option<String>,
    pub content_encoding: Option<String>,
}

impl Request {
    /// When a request that may take `timeout_ms` (else the default) must be over.
    pub(crate) fn deadline(&self, timeout_ms: Option<u64>) -> clock::Instant {
        let timeout = timeout_ms.map(std::time::Duration::from_millis);
        // An hour is for ever.
        let timeout = timeout.unwrap_or(self.serving.inner.input.settings.query.timeout);
        clock::Instant::now() + timeout.min(std::time::Duration::from_secs(3600))
    }
}

fn request(serving: &Serving) -> impl Filter<Extract = (Request,), Error = Rejection> + Clone + use<> {
    let serving = serving.clone();
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::any()
        .map(move || serving.clone())
        .and(query)
        .and(warp::header::optional("accept"))
        .and(warp::header::optional("last-event-id"))
        .and(warp::header::optional("content-encoding"))
        .map(|serving, query, accept, last_event_id, content_encoding| Request {
            serving,
            query,
            accept,
            last_event_id,
            content_encoding,
        })
}

fn get<F>(
    serving: &Serving,
    path: impl Filter<Extract = (), Error = Rejection> + Clone + Send + Sync + 'static,
    handler: impl Fn(Request) -> F + Clone + Send + Sync + 'static,
) -> BoxedFilter<(Response,)>
where
    F: Future<Output = Result<Response>> + Send + 'static,
{
    path.and(warp::get().or(warp::head()).unify())
        .and(request(serving))
        .then(move |request: Request| answer(handler(request)))
        .boxed()
}

fn get_one<F>(
    serving: &Serving,
    path: impl Filter<Extract = (Segment,), Error = Rejection> + Clone + Send + Sync + 'static,
    handler: impl Fn(Request, String) -> F + Clone + Send + Sync + 'static,
) -> BoxedFilter<(Response,)>
where
    F: Future<Output = Result<Response>> + Send + 'static,
{
    path.and(warp::get().or(warp::head()).unify())
        .and(request(serving))
        .then(move |Segment(name): Segment, request: Request| answer(handler(request, name)))
        .boxed()
}

async fn answer(handler: impl Future<Output = Result<Response>>) -> Response {
    handler.await.unwrap_or_else(|error| reply::failed(&error))
}

/// A JSON body; an empty one is `{}`.
fn document<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let bytes = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes };
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::new(Code::BadRequest, "the body is not a JSON object"));
    }
    serde_json::from_slice(bytes).map_err(|e| Error::new(Code::BadRequest, format!("the body is not as expected: {e}")))
}

/// Requests that no route took.
async fn rejected(rejection: Rejection) -> std::result::Result<Response, Infallible> {
    let error = if rejection.is_not_found() {
        Error::new(Code::NotFound, "there is nothing here: see /openapi.json for what there is")
    } else if rejection.find::<warp::reject::MethodNotAllowed>().is_some() {
        Error::new(Code::MethodNotAllowed, "this path does not take that method: see /openapi.json")
    } else {
        Error::new(Code::BadRequest, format!("{rejection:?}"))
    };
    Ok(reply::failed(&error))
}
