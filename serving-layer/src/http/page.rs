//! `GET /`: a plain page of what there is, until the console stands here.

use std::fmt::Write as _;

use warp::http::StatusCode;
use warp::reply::Response;
use watershed_shared::clock;

use super::{Request, reply};
use crate::error::Result;

pub(super) async fn page(request: Request) -> Result<Response> {
    let serving = &request.serving;
    let mut rows = String::new();
    for (view, input) in &serving.inner.input.views {
        let answer = serving.inner.answers.get(&input.stream).and_then(|a| a.borrow().views.get(view).cloned());
        let (generation, lag, complete) = match answer.map(|a| a.meta(clock::now())) {
            Some(meta) => {
                let lag = meta.lag_seconds.map_or_else(|| "not known".to_owned(), |s| format!("{s:.1} s"));
                (meta.generation.to_string(), lag, if meta.complete { "yes" } else { "no" })
            }
            None => ("–".to_owned(), "–".to_owned(), "not ready"),
        };
        let (name, stream) = (escape(view), escape(&input.stream));
        write!(
            rows,
            "<tr><td><a href=\"/v1/views/{name}\">{name}</a></td><td>{stream}</td><td>{generation}</td><td>{lag}</td>\
             <td>{complete}</td><td><a href=\"/v1/views/{name}/schema\">schema</a> \
             <a href=\"/v1/views/{name}/generations\">generations</a> \
             <a href=\"/v1/views/{name}?format=csv\">csv</a></td></tr>"
        )
        .expect("a string takes every text");
    }
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Watershed</title>\
         <style>body{{font:16px/1.5 system-ui;margin:2rem}}table{{border-collapse:collapse}}\
         td,th{{border-bottom:1px solid #ccc;padding:.3rem .8rem;text-align:left}}</style>\
         <h1>Watershed</h1><table><thead><tr><th>view</th><th>stream</th><th>generation</th><th>lag</th><th>complete</th>\
         <th></th></tr></thead><tbody>{rows}</tbody></table>\
         <p><a href=\"/v1/status\">status</a> · <a href=\"/v1/rebuilds\">builds</a> · <a href=\"/metrics\">metrics</a> · \
         <a href=\"/openapi.json\">openapi.json</a></p></html>"
    );
    Ok(reply::body(StatusCode::OK, "text/html; charset=utf-8", html.into_bytes()))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
