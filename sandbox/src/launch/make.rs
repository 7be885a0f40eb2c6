//! Makes templates in the background.

use std::sync::Arc;
use std::time::Instant;

use super::save::boot_and_save;
use super::trial::try_out;
use crate::error::{SandboxError, blocking};
use crate::runtime::Shared;
use crate::template::{Inputs, Shape, Template};

/// Makes the templates that are asked for; for ever.
pub(crate) async fn make_templates(shared: Arc<Shared>) {
    let mut asked = shared.templates.asked();
    while let Some(shape) = asked.recv().await {
        let began = Instant::now();
        match make(&shared, shape).await {
            Ok(template) => {
                let shared = Arc::clone(&shared);
                let added = blocking(move || {
                    shared.templates.add(template);
                    shared.pool.look_again();
                    Ok(())
                });
                if added.await.is_ok() {
                    let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(%shape, elapsed_ms, "made a template: microVMs of this shape are restored from now on");
                }
            }
            Err(error) => {
                tracing::warn!(%shape, error = error.chain(), "cannot make a template: microVMs of this shape boot");
                shared.templates.not_made(shape);
            }
        }
    }
}

/// Boots a microVM, saves it, and tries it out: a template that nothing can be restored from is none.
async fn make(shared: &Arc<Shared>, shape: Shape) -> Result<Arc<Template>, SandboxError> {
    let config = shared.config.vm.clone();
    let inputs = blocking(move || Inputs::of(&config)).await?;
    let (memory, state) = boot_and_save(shared, shape).await?;
    let template = blocking(move || Ok(Arc::new(Template::new(shape, inputs, memory, state)))).await?;
    let learning = Arc::clone(&template);
    try_out(shared, &template, move |pid| learning.learn(pid)).await?;
    Ok(template)
}
