//! Calls passed on to other nodes, and what several nodes know put together.

use std::{sync::Arc, time::Duration};

use ha_proto::control::{Event, EventsRequest, control_client::ControlClient};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::ApiError;
use crate::{membership::PeerView, node::Node};

pub type Client = ControlClient<Channel>;

const CONNECT: Duration = Duration::from_secs(2);
/// A peer's past events are waited for this long before what the others know is shown without them.
const PAST: Duration = Duration::from_secs(2);

pub async fn connect(peer: &PeerView) -> Result<Client, ApiError> {
    let away =
        |why: String| ApiError::Unavailable(format!("node {} at {} cannot be reached: {why}", peer.name, peer.address));
    let endpoint = Endpoint::from_shared(format!("http://{}", peer.address)).map_err(|err| away(err.to_string()))?;
    let channel = endpoint.connect_timeout(CONNECT).connect().await.map_err(|err| away(crate::chain(&err)))?;
    Ok(ControlClient::new(channel))
}

/// This node's events and, unless `local`, its living peers': the past sorted by time, then what comes.
pub async fn events(node: Arc<Node>, request: EventsRequest, sender: mpsc::Sender<Result<Event, Status>>) {
    let wanted = |event: &Event| request.name.is_empty() || event.container == request.name;
    let (mut past, mut live) = node.events().since_start();
    let mut peers = Vec::new();
    if !request.local {
        for peer in node.living_peers() {
            let ask = EventsRequest { follow: false, local: true, ..request.clone() };
            let answer = tokio::time::timeout(PAST, async {
                let mut stream = connect(&peer).await.ok()?.events(ask).await.ok()?.into_inner();
                let mut events = Vec::new();
                while let Ok(Some(event)) = stream.message().await {
                    events.push(event);
                }
                Some(events)
            });
            past.extend(answer.await.ok().flatten().unwrap_or_default());
            peers.push(peer);
        }
    }
    past.retain(|event| wanted(event));
    past.sort_by(|a, b| a.at.cmp(&b.at));
    for event in past {
        if sender.send(Ok(event)).await.is_err() {
            return;
        }
    }
    if !request.follow {
        return;
    }
    for peer in peers {
        tokio::spawn(follow_peer(peer, request.clone(), sender.clone()));
    }
    loop {
        tokio::select! {
            () = sender.closed() => return,
            event = live.recv() => match event {
                Ok(event) if wanted(&event) => {
                    if sender.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(RecvError::Lagged(n)) => {
                    let text = format!("{n} events were passed over: this reader is too slow");
                    let _ = sender.send(Err(Status::data_loss(text))).await;
                    return;
                }
                Err(RecvError::Closed) => return,
            },
        }
    }
}

/// Passes a peer's new events on for as long as it lives.
async fn follow_peer(peer: PeerView, request: EventsRequest, sender: mpsc::Sender<Result<Event, Status>>) {
    let since = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let Ok(mut client) = connect(&peer).await else { return };
    let Ok(stream) = client.events(EventsRequest { local: true, ..request }).await else { return };
    let mut stream = stream.into_inner();
    while let Ok(Some(event)) = stream.message().await {
        if event.at >= since && sender.send(Ok(event)).await.is_err() {
            return;
        }
    }
}
