//! Messages that are refused before anybody reads them, too large or no message at all: said, as other refusals are.

use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, FutureExt};
use tonic::{
    Code,
    codegen::{
        Service,
        http::{HeaderMap, Request, Response},
    },
};
use tower::Layer;

use crate::{membership::MembershipService, tls::Caller};

/// What prost says, as gRPC puts it into a header.
const UNDECODED: &[u8] = b"failed%20to%20decode";

/// Around the services of the peer port.
#[derive(Clone)]
pub(super) struct Unread(pub MembershipService);

impl<S> Layer<S> for Unread {
    type Service = Watched<S>;

    fn layer(&self, inner: S) -> Watched<S> {
        Watched { inner, membership: self.0.clone() }
    }
}

#[derive(Clone)]
pub(super) struct Watched<S> {
    inner: S,
    membership: MembershipService,
}

impl<S, A, B> Service<Request<A>> for Watched<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let caller = request.extensions().get::<Caller>().cloned();
        let membership = self.membership.clone();
        let answered = self.inner.call(request);
        async move {
            let response = answered.await?;
            if let (Some(caller), Some(code)) = (caller, refused(response.headers())) {
                membership.unread(&caller, code);
            }
            Ok(response)
        }
        .boxed()
    }
}

/// The code of a status that gRPC gave by itself. It stands beside the headers, for nothing was answered.
fn refused(headers: &HeaderMap) -> Option<Code> {
    let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
    let said = || headers.get("grpc-message").is_some_and(|text| text.as_bytes().starts_with(UNDECODED));
    match code {
        Code::OutOfRange | Code::Unimplemented => Some(code),
        Code::Internal => said().then_some(code),
        _ => None,
    }
}
