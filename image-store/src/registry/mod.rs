//! The registry v2 client.

mod credentials;

pub use credentials::Auth;
