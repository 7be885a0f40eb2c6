//! Lists in pieces, for clients whose limit on one message (16 MiB by default) a node's whole list would pass.

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tonic::Status;

/// Items of one message. One item is at most a record's labels and annotations: some 100 KiB.
const PIECE: usize = 64;

/// Sends `all` in pieces, in their order; nothing at all when there is nothing.
pub(crate) fn stream<T: Send + 'static, R: Send + 'static>(
    all: Vec<T>,
    wrap: impl Fn(Vec<T>) -> R + Send + 'static,
) -> BoxStream<'static, Result<R, Status>> {
    let mut rest = all.into_iter();
    let pieces = std::iter::from_fn(move || {
        let piece: Vec<T> = rest.by_ref().take(PIECE).collect();
        (!piece.is_empty()).then(|| Ok(wrap(piece)))
    });
    stream::iter(pieces).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_are_small_and_whole() {
        for count in [0, 1, PIECE, PIECE + 1, 5 * PIECE - 1] {
            let all: Vec<usize> = (0..count).collect();
            let pieces: Vec<Vec<usize>> = stream(all.clone(), |p| p).map(Result::unwrap).collect().await;
            assert!(pieces.iter().all(|p| (1..=PIECE).contains(&p.len())));
            assert_eq!(pieces.concat(), all);
        }
    }
}
