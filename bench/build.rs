//! Makes the echo that everything is compared with: one unary call and one stream of the smallest message.

use tonic_prost_build::manual::{Builder, Method, Service};

fn main() {
    let method = |name: &str, route: &str, streaming: bool| {
        let mut method = Method::builder()
            .name(name)
            .route_name(route)
            .input_type("crate::echo::Payload")
            .output_type("crate::echo::Payload")
            .codec_path("tonic_prost::ProstCodec");
        if streaming {
            method = method.client_streaming().server_streaming();
        }
        method.build()
    };
    let echo = Service::builder()
        .name("Echo")
        .package("bench")
        .method(method("unary", "Unary", false))
        .method(method("duplex", "Duplex", true))
        .build();
    Builder::new().compile(&[echo]);
}
