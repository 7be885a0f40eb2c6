//! An OpenTelemetry collector in the test's own process.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

type Messages = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

struct Service(Messages);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Ends with the test's runtime.
pub(super) struct Collector {
    pub(super) endpoint: String,
    messages: Messages,
}

impl Collector {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (endpoint, messages) = (format!("http://{}", listener.local_addr().unwrap()), Messages::default());
        let server = Server::builder().add_service(TraceServiceServer::new(Service(messages.clone())));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { endpoint, messages }
    }

    pub(super) fn seen(&self) -> Seen {
        let messages = self.messages.lock().unwrap();
        let (mut spans, mut resource) = (Vec::new(), Vec::new());
        for of_resource in messages.iter().flat_map(|message| &message.resource_spans) {
            resource = of_resource.resource.iter().flat_map(|r| texts(&r.attributes)).collect();
            for span in of_resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                let status = span.status.clone().unwrap_or_default();
                spans.push(SeenSpan {
                    name: span.name.clone(),
                    trace: hex::encode(&span.trace_id),
                    id: hex::encode(&span.span_id),
                    parent: hex::encode(&span.parent_span_id),
                    begin: span.start_time_unix_nano,
                    end: span.end_time_unix_nano,
                    error: status.code == StatusCode::Error as i32,
                    message: status.message,
                    attributes: texts(&span.attributes),
                });
            }
        }
        Seen { spans, resource, all: format!("{messages:?}") }
    }
}

fn texts(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |attribute: &KeyValue| match attribute.value.clone().and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

fn find<'a>(all: &'a [(String, String)], key: &str) -> &'a str {
    all.iter().find(|(known, _)| known == key).map_or("", |(_, value)| value)
}

/// A span as it arrived.
#[derive(Debug)]
pub(super) struct SeenSpan {
    pub(super) name: String,
    pub(super) trace: String,
    pub(super) id: String,
    pub(super) parent: String,
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) error: bool,
    pub(super) message: String,
    attributes: Vec<(String, String)>,
}

impl SeenSpan {
    pub(super) fn attribute(&self, key: &str) -> &str {
        find(&self.attributes, key)
    }
}

/// All that arrived.
pub(super) struct Seen {
    pub(super) spans: Vec<SeenSpan>,
    resource: Vec<(String, String)>,
    all: String,
}

impl Seen {
    /// The one span of this name.
    pub(super) fn only(&self, name: &str) -> &SeenSpan {
        let found: Vec<&SeenSpan> = self.spans.iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name} in {:?}", self.spans);
        found[0]
    }

    pub(super) fn resource(&self, key: &str) -> &str {
        find(&self.resource, key)
    }

    pub(super) fn has_no(&self, secret: &str) {
        assert!(!self.all.contains(secret), "{secret} left the node: {}", self.all);
    }
}
