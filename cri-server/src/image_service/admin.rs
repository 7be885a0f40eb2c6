//! What `cofferdam images` asks for and CRI has no call for.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use cofferdam_image_store::{ExportPart, LayerState, VerifiedLayer};
use cofferdam_proto::images::image_admin_server::ImageAdmin as Service;
use cofferdam_proto::images::import_request::Part;
use cofferdam_proto::images::{self as proto, ImportRequest, ImportResponse, ImportedImage, VerifyRequest};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
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

    type ExportImagesStream = BoxStream<'static, Result<proto::ExportResponse, Status>>;

    async fn export_images(
        &self,
        request: Request<proto::ExportRequest>,
    ) -> Result<Response<Self::ExportImagesStream>, Status> {
        let references = request.into_inner().references;
        if references.is_empty() {
            return Err(CriError::invalid("no image is named").into());
        }
        let parts = self.0.store.export(&references).map_err(CriError::from)?;
        let parts = stream::unfold(parts, async |mut parts| parts.recv().await.map(|part| (part, parts)));
        Ok(Response::new(parts.map(|part| part.map(exported).map_err(|e| CriError::from(e).into())).boxed()))
    }

    type VerifyLayersStream = BoxStream<'static, Result<proto::VerifiedLayer, Status>>;

    async fn verify_layers(&self, _: Request<VerifyRequest>) -> Result<Response<Self::VerifyLayersStream>, Status> {
        let (sender, layers) = mpsc::channel(1);
        let store = self.0.store.clone();
        // A client that goes closes the channel, which ends the work.
        let verify = stream::once(async move { store.verify(sender).await }).filter_map(async |end| match end {
            Ok(()) => None,
            Err(error) => Some(Err(CriError::from(error).into())),
        });
        let layers = ReceiverStream::new(layers).map(|layer| Ok(answer(layer)));
        Ok(Response::new(stream::select(layers, verify).boxed()))
    }
}

fn exported(part: ExportPart) -> proto::ExportResponse {
    use proto::export_response::Part;
    let part = match part {
        ExportPart::Image { names, id, new_id } => Part::Image(proto::ExportedImage { id, new_id, names }),
        ExportPart::Bytes(piece) => Part::Piece(piece.into()),
    };
    proto::ExportResponse { part: Some(part) }
}

fn answer(layer: VerifiedLayer) -> proto::VerifiedLayer {
    let (state, detail) = match layer.state {
        LayerState::Intact => (proto::LayerState::Intact, String::new()),
        LayerState::New => (proto::LayerState::New, String::new()),
        LayerState::Changed(why) => (proto::LayerState::Changed, why),
    };
    proto::VerifiedLayer { chain_id: layer.chain.to_string(), images: layer.images, state: state.into(), detail }
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
