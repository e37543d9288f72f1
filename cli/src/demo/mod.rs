//! The demo of `weir up`: two hosts in network namespaces, an HTTP server in one, a client with good and failing
//! connections in the other. An idle host would show little. Everything in it is labelled "demo".

pub(crate) mod client;
pub(crate) mod hosts;
mod leftovers;
mod place;
pub(crate) mod server;
