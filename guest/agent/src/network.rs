//! The guest's interfaces, as CNI would have them.

use cofferdam_proto::agent::{Interface, Route};

use crate::error::Result;

/// Sets interfaces and routes.
///
/// # Errors
/// Says which.
pub async fn configure(_interfaces: &[Interface], _routes: &[Route]) -> Result<()> {
    Ok(())
}
