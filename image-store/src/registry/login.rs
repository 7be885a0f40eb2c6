//! Answers to challenges: Basic, and the tokens of the distribution project's token specification.

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Client, Method, Response, Url};
use serde_json::Value;

use super::challenge::Challenge;
use super::credentials::{Auth, Secret, basic_header};
use super::fault::{Fault, body, explain, of_answer, transport};
use super::manifest::printable;
use super::session::{Endpoint, Login, Session, is_local, same_server};

const TOKEN_BYTES: u64 = 1 << 20;
const MAX_REDIRECTS: usize = 5;
const CLIENT_ID: &str = "cofferdam";
const FORM: &str = "application/x-www-form-urlencoded";

/// One token service, and for whom it is asked.
struct Service<'a> {
    client: &'a Client,
    realm: Url,
    service: Option<String>,
    scope: String,
    auth: Option<&'a Auth>,
    /// It may be reached over plain HTTP.
    plain: bool,
}

impl Session {
    /// Answers the challenge of the server of `url`, which is the endpoint itself (`here`) or one
    /// that it redirected to. The latter gets no credentials, only an anonymous token. Requests
    /// that are challenged at the same time log in once.
    pub(super) async fn log_in(
        &self,
        endpoint: &Endpoint,
        here: bool,
        url: &Url,
        login: &Login,
        response: Response,
        used: Option<HeaderValue>,
    ) -> Result<HeaderValue, Fault> {
        let mut known = login.lock().await;
        if *known != used
            && let Some(newer) = &*known
        {
            return Ok(newer.clone());
        }
        let auth = if here { self.credentials(endpoint).await } else { None };
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges = Challenge::parse(headers.filter_map(|header| header.to_str().ok()));
        let value = match auth.as_ref().map(Auth::secret) {
            Some(Secret::Bearer(token)) => format!("Bearer {token}"),
            _ if challenges.is_empty() => {
                let said = explain(response).await;
                return Err(Fault::Refused(format!("it asks for no kind of login that is known here: {said}")));
            }
            _ => self.answer(endpoint, here, url, &challenges, auth.as_ref()).await?,
        };
        let value = sensitive(&value)?;
        *known = Some(value.clone());
        Ok(value)
    }

    /// Tries what is offered: tokens first, since a password that is not sent is not lost.
    async fn answer(
        &self,
        endpoint: &Endpoint,
        here: bool,
        url: &Url,
        challenges: &[Challenge],
        auth: Option<&Auth>,
    ) -> Result<String, Fault> {
        let mut fault = None;
        for challenge in challenges {
            let Challenge::Bearer { realm, service, scope } = challenge else { continue };
            let scope = scope.clone().filter(|scope| !scope.trim().is_empty());
            let result = match realm_of(endpoint, url, realm) {
                Ok(realm) => {
                    let service = Service {
                        client: client_for(endpoint, here, &realm),
                        plain: realm.scheme() == "http",
                        realm,
                        service: service.clone(),
                        scope: scope.unwrap_or_else(|| format!("repository:{}:pull", repository_of(url))),
                        auth,
                    };
                    service.token().await
                }
                Err(fault) => Err(fault),
            };
            match result {
                Ok(token) => return Ok(format!("Bearer {token}")),
                Err(passing @ (Fault::Passing(..) | Fault::Silent(_))) => return Err(passing),
                Err(other) => fault = Some(other),
            }
        }
        match auth.map(Auth::secret) {
            Some(Secret::Basic { username, password }) if challenges.contains(&Challenge::Basic) => {
                Ok(basic_header(username, password))
            }
            _ => Err(fault.unwrap_or_else(|| Fault::Refused("it wants a user name and a password".into()))),
        }
    }
}

/// The endpoint's own client, unless that leaves certificates of other machines unchecked.
fn client_for<'a>(endpoint: &'a Endpoint, here: bool, realm: &Url) -> &'a Client {
    let checked = !endpoint.place.skip_verify_here || is_local(realm);
    if here && checked { &endpoint.client } else { &endpoint.elsewhere }
}

/// The URL of a token service: over TLS where the registry is.
fn realm_of(endpoint: &Endpoint, url: &Url, realm: &str) -> Result<Url, Fault> {
    let parsed = url.join(realm).map_err(|_| Fault::Down("its token service is not a URL".into()))?;
    let local = is_local(url) && is_local(&parsed);
    let plain = url.scheme() == "http" || endpoint.place.downgrade || local;
    match parsed.scheme() {
        "https" => Ok(parsed),
        "http" if plain => Ok(parsed),
        _ => Err(Fault::Down(format!(
            "its token service {} is not https: insecure_redirects of this registry allows that, or skip_verify in \
             its hosts.toml",
            printable(realm)
        ))),
    }
}

/// The repository in a path below `/v2/`.
fn repository_of(url: &Url) -> &str {
    let path = url.path();
    let path = path.split_once("/v2/").map_or(path, |(_, rest)| rest);
    ["/manifests/", "/blobs/"].iter().find_map(|part| path.rsplit_once(part)).map_or(path, |(name, _)| name)
}

impl Service<'_> {
    /// A token: by GET with a user and a password, or by POST, which is its OAuth2 form, for
    /// refresh tokens. Services that know only one of them get the other.
    async fn token(&self) -> Result<String, Fault> {
        let response = match self.auth.map(Auth::secret) {
            Some(Secret::Identity(refresh)) => {
                let first = self.post(&[("grant_type", "refresh_token"), ("refresh_token", refresh)]).await?;
                match first.status().as_u16() {
                    400 | 401 | 404 | 405 => {
                        let second = self.get(Some(&basic_header("<token>", refresh))).await?;
                        // What the form of the specification was answered with says more.
                        if second.status().is_success() { second } else { first }
                    }
                    _ => first,
                }
            }
            Some(Secret::Basic { username, password }) => {
                let first = self.get(Some(&basic_header(username, password))).await?;
                match first.status().as_u16() {
                    404 | 405 => {
                        self.post(&[("grant_type", "password"), ("username", username), ("password", password)]).await?
                    }
                    _ => first,
                }
            }
            _ => self.get(None).await?,
        };
        let status = response.status();
        if !status.is_success() {
            let named = |detail: String| format!("token service: {detail}");
            return Err(match of_answer(response).await {
                Fault::Passing(detail, after) => Fault::Passing(named(detail), after),
                Fault::Refused(detail) | Fault::Down(detail) => Fault::Refused(named(detail)),
                _ => Fault::Refused(named(status.to_string())),
            });
        }
        let bytes = body(response, TOKEN_BYTES).await?.unwrap_or_default();
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let text = |key: &str| answer.get(key).and_then(Value::as_str).filter(|token| !token.is_empty());
        let token = text("token").or_else(|| text("access_token"));
        token.map(str::to_owned).ok_or_else(|| Fault::Down("its token service sent no token".into()))
    }

    async fn get(&self, authorization: Option<&str>) -> Result<Response, Fault> {
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            for scope in self.scope.split_whitespace() {
                query.append_pair("scope", scope);
            }
            query.extend_pairs(self.service.iter().map(|service| ("service", service)));
        }
        let authorization = authorization.map(sensitive).transpose()?;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.client.request(Method::GET, url.clone());
            // Never to another server.
            if let Some(value) = authorization.as_ref().filter(|_| same_server(&url, &self.realm)) {
                request = request.header(AUTHORIZATION, value.clone());
            }
            let response = request.send().await.map_err(|e| transport(&e))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            url = next
                .filter(|next| next.scheme() == "https" || self.plain && next.scheme() == "http")
                .ok_or_else(|| Fault::Down("its token service redirects to where it cannot be followed".into()))?;
        }
        Err(Fault::Down(format!("its token service redirects more than {MAX_REDIRECTS} times")))
    }

    async fn post(&self, fields: &[(&str, &str)]) -> Result<Response, Fault> {
        let mut form = vec![("scope", self.scope.as_str()), ("client_id", CLIENT_ID)];
        form.extend(self.service.as_deref().map(|service| ("service", service)));
        form.extend(fields);
        let encoded = Url::parse_with_params("http://form/", &form)
            .map_err(|_| Fault::Refused("the refresh token is not text".into()))?;
        let encoded = encoded.query().unwrap_or_default().to_owned();
        let request = self.client.post(self.realm.clone()).header(CONTENT_TYPE, FORM).body(encoded);
        request.send().await.map_err(|e| transport(&e))
    }
}

fn sensitive(value: &str) -> Result<HeaderValue, Fault> {
    let mut value =
        HeaderValue::from_str(value).map_err(|_| Fault::Refused("the credentials or the token are not text".into()))?;
    value.set_sensitive(true);
    Ok(value)
}
