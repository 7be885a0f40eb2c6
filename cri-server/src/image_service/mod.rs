//! CRI's image service.

mod admin;
mod pull_image;

use std::sync::Arc;

use cofferdam_image_store::{Image, Reference};
use cofferdam_proto::cri;
use cofferdam_proto::cri::image_service_server::ImageService;
use futures::stream::BoxStream;
use serde_json::json;
use tonic::{Request, Response, Status, async_trait};

use crate::error::CriError;
use crate::ids::now_nanos;
use crate::node::Node;
use crate::runtime_service::streamed;
use crate::translate::user;

pub(crate) use self::admin::ImageAdmin;

/// Serves the image service.
pub(crate) struct Images(pub(crate) Arc<Node>);

type Answer<T> = Result<Response<T>, Status>;

impl Images {
    /// Asks the store on a thread that may block.
    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Node) -> Result<T, CriError> + Send + 'static,
    ) -> Result<T, CriError> {
        let node = self.0.clone();
        tokio::task::spawn_blocking(move || ask(&node))
            .await
            .map_err(|e| CriError::internal("ask the image store", e))?
    }

    async fn list(&self, filter: Option<cri::ImageFilter>) -> Result<Vec<cri::Image>, CriError> {
        let wanted = filter.and_then(|f| f.image).map(|i| i.image).filter(|i| !i.is_empty());
        let images: Vec<Image> = self
            .ask(move |node| match wanted {
                Some(wanted) => Ok(node.store.status(&wanted)?.into_iter().collect()),
                None => Ok(node.store.list()?),
            })
            .await?;
        Ok(images.into_iter().map(show).collect())
    }
}

fn reference(spec: Option<&cri::ImageSpec>) -> Result<String, CriError> {
    match spec {
        Some(spec) if !spec.image.is_empty() => Ok(spec.image.clone()),
        _ => Err(CriError::invalid("no image is named")),
    }
}

/// An image, as CRI shows it.
fn show(image: Image) -> cri::Image {
    let (uid, username) = user::of_image(&image.config.user);
    cri::Image {
        spec: Some(cri::ImageSpec { image: image.id.clone(), ..Default::default() }),
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        // What the kubelet gets back by removing it: it counts this against what it wants to free.
        size: image.disk_bytes.max(image.size),
        uid: uid.map(|value| cri::Int64Value { value }),
        username,
        pinned: image.pinned,
    }
}

/// How far a running pull of `wanted` is: the layers, as JSON.
fn pulling(node: &Node, wanted: &str) -> Option<String> {
    let reference = wanted.parse::<Reference>().ok()?.to_string();
    let pull = node.store.progress().into_iter().find(|pull| pull.reference == reference)?;
    let layers = pull.layers.iter().map(|layer| {
        json!({
            "digest": layer.digest, "bytes_done": layer.bytes_done, "bytes_total": layer.bytes_total, "done": layer.done,
        })
    });
    Some(layers.collect::<serde_json::Value>().to_string())
}

fn no_profiles() -> Status {
    CriError::Unimplemented("security profiles from registries are not supported").into()
}

#[async_trait]
impl ImageService for Images {
    async fn list_images(&self, request: Request<cri::ListImagesRequest>) -> Answer<cri::ListImagesResponse> {
        Ok(Response::new(cri::ListImagesResponse { images: self.list(request.into_inner().filter).await? }))
    }

    type StreamImagesStream = BoxStream<'static, Result<cri::StreamImagesResponse, Status>>;

    async fn stream_images(&self, request: Request<cri::StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let all = self.list(request.into_inner().filter).await?;
        Ok(Response::new(streamed::stream(all, |images| cri::StreamImagesResponse { images })))
    }

    async fn image_status(&self, request: Request<cri::ImageStatusRequest>) -> Answer<cri::ImageStatusResponse> {
        let request = request.into_inner();
        let wanted = reference(request.image.as_ref())?;
        let mut response = cri::ImageStatusResponse::default();
        if request.verbose
            && let Some(layers) = pulling(&self.0, &wanted)
        {
            response.info.insert("pull".into(), layers);
        }
        let image = self.ask(move |node| Ok(node.store.status(&wanted)?)).await?;
        if let Some(image) = image {
            if request.verbose {
                let config = serde_json::to_string(&image.config).unwrap_or_default();
                response.info.insert("info".into(), format!("{{\"imageSpec\":{{\"config\":{config}}}}}"));
            }
            response.image = Some(show(image));
        }
        Ok(Response::new(response))
    }

    async fn pull_image(&self, request: Request<cri::PullImageRequest>) -> Answer<cri::PullImageResponse> {
        let request = request.into_inner();
        let wanted = reference(request.image.as_ref())?;
        let image_ref = pull_image::call(&self.0, &wanted, request.auth.as_ref()).await?;
        Ok(Response::new(cri::PullImageResponse { image_ref }))
    }

    async fn remove_image(&self, request: Request<cri::RemoveImageRequest>) -> Answer<cri::RemoveImageResponse> {
        let wanted = reference(request.into_inner().image.as_ref())?;
        match self.0.store.remove(&wanted).await.map_err(CriError::from) {
            Ok(()) => tracing::info!(image = wanted, "image removed"),
            // CRI: removing what is not there succeeds.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Response::new(cri::RemoveImageResponse {}))
    }

    async fn pull_security_profile(
        &self,
        _: Request<cri::PullSecurityProfileRequest>,
    ) -> Answer<cri::PullSecurityProfileResponse> {
        Err(no_profiles())
    }

    async fn list_security_profiles(
        &self,
        _: Request<cri::ListSecurityProfilesRequest>,
    ) -> Answer<cri::ListSecurityProfilesResponse> {
        Err(no_profiles())
    }

    async fn remove_security_profile(
        &self,
        _: Request<cri::RemoveSecurityProfileRequest>,
    ) -> Answer<cri::RemoveSecurityProfileResponse> {
        Err(no_profiles())
    }

    async fn image_fs_info(&self, _: Request<cri::ImageFsInfoRequest>) -> Answer<cri::ImageFsInfoResponse> {
        let usage = self.ask(|node| Ok(node.store.usage())).await?;
        let filesystem = cri::FilesystemUsage {
            timestamp: now_nanos(),
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: usage.path.to_string_lossy().into_owned() }),
            used_bytes: Some(cri::UInt64Value { value: usage.used_bytes }),
            inodes_used: Some(cri::UInt64Value { value: usage.inodes_used }),
        };
        Ok(Response::new(cri::ImageFsInfoResponse {
            image_filesystems: vec![filesystem.clone()],
            container_filesystems: vec![filesystem],
        }))
    }
}
