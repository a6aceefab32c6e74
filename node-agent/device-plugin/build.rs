//! Generates messages, clients and servers from the protocol definition.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure().compile_protos(&["proto/v1beta1.proto"], &["proto"])
}
