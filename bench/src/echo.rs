//! The echo that everything is compared with: the smallest call of the same gRPC library, and a bare datagram.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use bytes::Bytes;
use tokio::net::UdpSocket;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use pb::echo_client::EchoClient;

/// The message, both ways.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(unreachable_pub, reason = "generated code names it in public traits")]
pub struct Payload {
    /// What comes back.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod pb {
    include!(concat!(env!("OUT_DIR"), "/bench.Echo.rs"));
}

struct Echo;

#[tonic::async_trait]
impl pb::echo_server::Echo for Echo {
    async fn unary(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    type DuplexStream = Streaming<Payload>;

    async fn duplex(
        &self,
        request: Request<Streaming<Payload>>,
    ) -> Result<Response<Self::DuplexStream>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

/// Serves the echo on `port` over TCP (gRPC) and UDP (datagrams) until the process is killed.
pub(crate) async fn serve(port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let socket = UdpSocket::bind(address).await?;
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((size, from)) = socket.recv_from(&mut buffer).await {
            socket.send_to(&buffer[..size], from).await.ok(); // a client that has gone needs no answer
        }
    });
    let echo = pb::echo_server::EchoServer::new(Echo);
    Ok(Server::builder().tcp_nodelay(true).add_service(echo).serve(address).await?)
}
