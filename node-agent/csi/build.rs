//! Generates messages, clients and servers from the protocol definitions.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .compile_protos(&["proto/csi.proto", "proto/registration.proto"], &["proto"])
}
