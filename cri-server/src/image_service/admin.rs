//! What `cofferdam images` asks for and CRI has no call for.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use cofferdam_proto::images::image_admin_server::ImageAdmin as Service;
use cofferdam_proto::images::import_request::Part;
use cofferdam_proto::images::{ImportRequest, ImportResponse, ImportedImage};
use futures::stream::{self, Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::error::CriError;
use crate::node::Node;

/// Serves it.
pub(crate) struct ImageAdmin(pub(crate) Arc<Node>);

#[async_trait]
impl Service for ImageAdmin {
    async fn import_images(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<ImportResponse>, Status> {
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|request| request.part);
        let (name, first) = match first {
            Some(Part::Name(name)) => (Some(name), None),
            first => (None, first),
        };
        let parts = stream::iter(first.map(Ok)).chain(parts.filter_map(async |request| match request {
            Ok(request) => request.part.map(Ok),
            Err(status) => Some(Err(status)),
        }));
        let images = self.0.store.import(name.as_deref(), pieces(parts)).await.map_err(CriError::from)?;
        let images = images.into_iter().map(|image| ImportedImage { id: image.id, names: image.names });
        Ok(Response::new(ImportResponse { images: images.collect() }))
    }
}

/// The archive's bytes. Ends well only after a part that says that the archive is whole.
fn pieces(parts: impl Stream<Item = Result<Part, Status>> + Send) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(Box::pin(parts), async |mut parts| match parts.next().await {
        Some(Ok(Part::Piece(piece))) => Ok(Some((Bytes::from(piece), parts))),
        Some(Ok(Part::Whole(_))) => Ok(None),
        Some(Ok(Part::Name(_))) => Err(io::Error::other("a name in the middle of an archive")),
        Some(Err(status)) => Err(io::Error::other(status)),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive broke off")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_archive_is_whole_only_when_that_is_said() {
        let piece = |text: &str| Ok(Part::Piece(text.as_bytes().to_vec()));
        let read = async |parts: Vec<Result<Part, Status>>| {
            let pieces: Vec<_> = pieces(stream::iter(parts)).collect().await;
            pieces.into_iter().map(|piece| piece.map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>()
        };
        let whole = read(vec![piece("a"), piece("b"), Ok(Part::Whole(true)), piece("c")]).await;
        assert_eq!(whole.unwrap().concat(), b"ab");
        assert!(read(vec![]).await.is_err());
        assert_eq!(read(vec![piece("a")]).await.unwrap_err(), "the archive broke off");
        let gone = read(vec![piece("a"), Err(Status::cancelled("gone"))]).await.unwrap_err();
        assert!(gone.contains("gone"), "{gone}");
        assert!(read(vec![piece("a"), Ok(Part::Name("b".into()))]).await.is_err());
    }
}
