//! Calls passed on to other nodes, and what several nodes know put together.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use ha_proto::control::{Event, EventsRequest, control_client::ControlClient};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc},
    task::JoinSet,
};
use tonic::{Status, transport::Channel};

use super::ApiError;
use crate::{
    membership::PeerView,
    node::Node,
    spec::{ContainerName, NodeName},
    store::apps,
    tls::Security,
};

pub type Client = ControlClient<Channel>;

/// A peer's past events are waited for this long before what the others know is shown without them.
const PAST: Duration = Duration::from_secs(2);
/// A peer whose events ended is followed again after this long.
const AGAIN: Duration = Duration::from_millis(300);
/// A node's events that a follower remembers: more than a node keeps.
const SHOWN: usize = 8192;

pub async fn connect(security: &Security, peer: &PeerView) -> Result<Client, ApiError> {
    let channel = security.connect(&peer.name, &peer.address).await.map_err(|err| {
        let why = crate::chain(&err);
        ApiError::Unavailable(format!("node {} at {} cannot be reached: {why}", peer.name, peer.address))
    })?;
    Ok(ControlClient::new(channel))
}

/// This node's events and, unless `local`, its peers': the past sorted by time, then what comes.
pub async fn events(node: Arc<Node>, request: EventsRequest, sender: mpsc::Sender<Result<Event, Status>>) {
    let wanted = |event: &Event| request.name.is_empty() || event.container == request.name;
    let (mut past, mut live) = node.events().since_start();
    let mut shown: HashMap<NodeName, Shown> = HashMap::new();
    if !request.local {
        let peers = node.living_peers();
        let answers =
            futures_util::future::join_all(peers.iter().map(|peer| past_of(&node.ctx.security, peer, &request))).await;
        for (peer, events) in peers.into_iter().zip(answers) {
            shown.insert(peer.name, Shown::new(&events));
            past.extend(events);
        }
    }
    past.retain(|event| wanted(event));
    if past.is_empty()
        && !(request.name.is_empty() || request.follow || request.local)
        && let Err(error) = named(&node, &request.name).await
    {
        let _ = sender.send(Err(error.into())).await;
        return;
    }
    past.sort_by(|a, b| a.at.cmp(&b.at));
    for event in past {
        if sender.send(Ok(event)).await.is_err() {
            return;
        }
    }
    if !request.follow {
        return;
    }
    let peers = async {
        if request.local {
            std::future::pending::<()>().await;
        }
        follow_peers(&node, &request, shown, &sender).await;
    };
    tokio::pin!(peers);
    loop {
        tokio::select! {
            () = sender.closed() => return,
            () = &mut peers => return,
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

/// Refuses the name of a container that has never been, as far as the store can be asked.
async fn named(node: &Node, name: &str) -> Result<(), ApiError> {
    let name: ContainerName = name.parse()?;
    match apps::newest(&node.ctx.store, &name).await {
        Ok(None) => Err(ApiError::no_container(&name)),
        _ => Ok(()),
    }
}

/// What a peer has seen up to now; nothing when it does not answer in time.
async fn past_of(security: &Security, peer: &PeerView, request: &EventsRequest) -> Vec<Event> {
    let ask = EventsRequest { follow: false, local: true, ..request.clone() };
    let answer = tokio::time::timeout(PAST, async {
        let mut stream = connect(security, peer).await.ok()?.events(ask).await.ok()?.into_inner();
        let mut events = Vec::new();
        while let Ok(Some(event)) = stream.message().await {
            events.push(event);
        }
        Some(events)
    });
    answer.await.ok().flatten().unwrap_or_default()
}

/// Which of a node's events a reader has had. By what they say, not by when: nodes' clocks differ.
#[derive(Debug, Default)]
struct Shown {
    set: HashSet<Event>,
    order: VecDeque<Event>,
}

impl Shown {
    fn new(events: &[Event]) -> Self {
        let mut shown = Self::default();
        for event in events {
            shown.is_new(event);
        }
        shown
    }

    fn is_new(&mut self, event: &Event) -> bool {
        if !self.set.insert(event.clone()) {
            return false;
        }
        self.order.push_back(event.clone());
        if self.order.len() > SHOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
        true
    }
}

/// Passes on what peers see, those too that come or come back later, until it is dropped.
async fn follow_peers(
    node: &Node,
    request: &EventsRequest,
    mut shown: HashMap<NodeName, Shown>,
    sender: &mpsc::Sender<Result<Event, Status>>,
) {
    let mut changes = node.ctx.membership.subscribe();
    let mut followed: JoinSet<(NodeName, Shown)> = JoinSet::new();
    let mut busy: HashSet<NodeName> = HashSet::new();
    loop {
        for peer in node.living_peers() {
            if busy.insert(peer.name.clone()) {
                let shown = shown.remove(&peer.name).unwrap_or_default();
                let ask = EventsRequest { local: true, ..request.clone() };
                followed.spawn(follow_peer(node.ctx.security.clone(), peer, ask, shown, sender.clone()));
            }
        }
        let ended = tokio::select! {
            change = changes.recv() => match change {
                Err(RecvError::Closed) => return,
                _ => None,
            },
            ended = followed.join_next(), if !followed.is_empty() => ended,
        };
        if ended.is_some() {
            // It may be alive, and refuse.
            tokio::time::sleep(AGAIN).await;
        }
        for (name, had) in ended.into_iter().chain(std::iter::from_fn(|| followed.try_join_next())).flatten() {
            busy.remove(&name);
            shown.insert(name, had);
        }
    }
}

/// As long as the peer answers: what it saw before and is not shown yet, and what it sees.
async fn follow_peer(
    security: Security,
    peer: PeerView,
    ask: EventsRequest,
    mut shown: Shown,
    sender: mpsc::Sender<Result<Event, Status>>,
) -> (NodeName, Shown) {
    let stream = async { connect(&security, &peer).await.ok()?.events(ask).await.ok() };
    if let Some(stream) = stream.await {
        let mut stream = stream.into_inner();
        while let Ok(Some(event)) = stream.message().await {
            if shown.is_new(&event) && sender.send(Ok(event)).await.is_err() {
                break;
            }
        }
    }
    (peer.name, shown)
}
