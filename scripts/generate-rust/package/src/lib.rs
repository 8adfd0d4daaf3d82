//! The protocol of Exchange, `exchange.v1`: messages, frames, and the gRPC stubs of its service.
//!
//! Generated from its schema. A client that speaks it is the crate `exchange-grpc`.

// What stands in the schema's comments is not written for rustdoc, nor the code for clippy.
#![allow(clippy::all, rustdoc::all, rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

/// The contract.
pub mod exchange {
    /// Its first version.
    pub mod v1 {
        include!("exchange.v1.rs");
    }
}

/// Types of Google that it uses.
pub mod google {
    /// Statuses and their details.
    pub mod rpc {
        include!("google.rpc.rs");
    }
}
