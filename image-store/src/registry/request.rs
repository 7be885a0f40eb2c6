//! One request: redirects, and the logins that servers on the way ask for.

use std::sync::atomic::Ordering::Relaxed;

use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};

use super::fault::{Fault, of_answer, transport};
use super::manifest::printable;
use super::place::Scheme;
use super::session::{Endpoint, Session, is_local, same_server};

const MAX_REDIRECTS: usize = 10;

/// What is asked for, below the repository.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// `manifests/latest`.
    pub(super) path: &'a str,
    pub(super) accept: &'static str,
    /// `bytes=5-`.
    pub(super) range: Option<String>,
}

impl<'a> Request<'a> {
    pub(super) fn get(path: &'a str, accept: &'static str) -> Self {
        Self { method: Method::GET, path, accept, range: None }
    }
}

impl Session {
    /// The answer, when it is a success.
    pub(super) async fn ask(&self, endpoint: &Endpoint, request: &Request<'_>) -> Result<Response, Fault> {
        let response = self.exchange(endpoint, request).await?;
        match response.status().as_u16() {
            200 | 206 => Ok(response),
            _ => Err(of_answer(response).await),
        }
    }

    /// The answer at the end of all redirects, whatever it is.
    pub(super) async fn exchange(&self, endpoint: &Endpoint, request: &Request<'_>) -> Result<Response, Fault> {
        let mut url = self.first_url(endpoint, request)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.logged_in(endpoint, &mut url, request).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| Fault::Down("redirects to nowhere".into()))?;
            let next = url.join(location);
            let next =
                next.map_err(|_| Fault::Down(format!("redirects to {:?}, which is no URL", printable(location))))?;
            allowed(endpoint, &url, &next)?;
            url = next;
        }
        Err(Fault::Down(format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn first_url(&self, endpoint: &Endpoint, request: &Request<'_>) -> Result<Url, Fault> {
        let root = &endpoint.place.root;
        let text = format!("{}{root}/{}/{}", endpoint.origin(), self.repository, request.path);
        let mut url = Url::parse(&text).map_err(|_| Fault::Down("its address is no URL".into()))?;
        if endpoint.proxy {
            url.query_pairs_mut().append_pair("ns", &self.host);
        }
        Ok(url)
    }

    /// One hop, with the login that its server wants. Changes the URL's scheme when the endpoint
    /// does not speak TLS.
    async fn logged_in(&self, endpoint: &Endpoint, url: &mut Url, request: &Request<'_>) -> Result<Response, Fault> {
        let here = Url::parse(&endpoint.origin()).is_ok_and(|origin| same_server(&origin, url));
        let login = self.logins.of(&server_of(url));
        let used = login.lock().await.clone();
        let first = self.send(endpoint, here, url, request, used.as_ref()).await;
        let response = match first {
            Err(error) if here && speaks_no_tls(endpoint, url, &error) => {
                endpoint.plain.store(true, Relaxed);
                let set = url.set_scheme("http");
                set.map_err(|()| Fault::Down("its address is no URL".into()))?;
                self.send(endpoint, here, url, request, used.as_ref()).await
            }
            other => other,
        };
        let response = response.map_err(|e| transport(&e))?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let login = self.logins.of(&server_of(url));
        let value = self.log_in(endpoint, here, url, &login, response, used).await?;
        self.send(endpoint, here, url, request, Some(&value)).await.map_err(|e| transport(&e))
    }

    /// Headers of the configuration, and client certificates, are for the endpoint alone.
    async fn send(
        &self,
        endpoint: &Endpoint,
        here: bool,
        url: &Url,
        request: &Request<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, reqwest::Error> {
        let client = if here { &endpoint.client } else { &endpoint.elsewhere };
        let mut builder = client.request(request.method.clone(), url.clone());
        if here {
            builder = builder.headers(endpoint.place.headers.clone());
        }
        // Digests are of the bytes as they are.
        builder = builder.header(ACCEPT, request.accept).header(ACCEPT_ENCODING, "identity");
        if let Some(range) = &request.range {
            builder = builder.header(RANGE, range);
        }
        let mut built = builder.build()?;
        if let Some(value) = authorization {
            built.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        client.execute(built).await
    }
}

fn server_of(url: &Url) -> String {
    format!("{}://{}:{}", url.scheme(), url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(0))
}

/// Where certificates are to be checked, a failure of TLS is no reason to do without.
fn speaks_no_tls(endpoint: &Endpoint, url: &Url, error: &reqwest::Error) -> bool {
    let place = &endpoint.place;
    place.scheme == Scheme::Either
        && place.trust.skip_verify
        && url.scheme() == "https"
        && error.is_connect()
        && !error.is_timeout()
}

/// Registries send blobs, and some of them everything, from elsewhere; but not from plain HTTP when
/// they were asked over TLS, unless the configuration allows it.
fn allowed(endpoint: &Endpoint, from: &Url, to: &Url) -> Result<(), Fault> {
    let host = printable(to.host_str().unwrap_or_default());
    match to.scheme() {
        "https" => Ok(()),
        "http" if from.scheme() == "http" || endpoint.place.downgrade => Ok(()),
        "http" if is_local(from) && is_local(to) => Ok(()),
        "http" => Err(Fault::Down(format!(
            "redirects from https to plain http at {host}: insecure_redirects of this registry allows that, or \
             skip_verify in its hosts.toml"
        ))),
        _ => Err(Fault::Down(format!("redirects to {host:?} over neither http nor https"))),
    }
}
