//! Generates messages, clients and servers from the protocol definitions.

fn main() -> std::io::Result<()> {
    let protocols = ["proto/v1beta1.proto", "proto/podresources/v1.proto"];
    tonic_prost_build::configure().compile_protos(&protocols, &["proto"])
}
