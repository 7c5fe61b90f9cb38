//! `apply`: a specification becomes a container.

use std::{path::PathBuf, sync::Arc};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Node, identity::address_refused};
use crate::{
    api::ApiError,
    image,
    ownership::{self, Claim, Claimant},
    recovery::{Begin, Command, Order, Phase, ProgressSender},
    spec::{Condition, ContainerName, ContainerSpec, Dependency, Epoch, ImageRecord, NodeName, StateKind},
    store::{
        StoreError,
        apps::{self, App, AppContent, PutApp},
    },
};

impl Node {
    /// What of a specification means this node and its files: the image goes into the store.
    pub async fn prepare(
        &self,
        spec: ContainerSpec,
        base_dir: PathBuf,
        progress: &ProgressSender,
    ) -> Result<(ContainerSpec, ImageRecord), ApiError> {
        self.check_address(&spec).await?;
        progress.step(format!("{}: making the image {} ready", spec.name, spec.image));
        let image = self.import(&spec, &base_dir, progress).await?;
        Ok((spec, image))
    }

    /// `apply` of a container that another node owns: fine when there is nothing to do.
    ///
    /// # Errors
    /// When something differs: where to apply it.
    pub async fn compare(&self, spec: ContainerSpec, image: ImageRecord, owner: &NodeName) -> Result<Value, ApiError> {
        let name = spec.name.clone();
        let newest = apps::newest(&self.ctx.store, &name).await.map_err(unavailable)?;
        if newest.and_then(|app| app.content) == Some(AppContent { spec, image }) {
            let status = crate::api::gather_status(self, false).await;
            let there = status.containers.into_iter().find(|container| container.name == name.as_str());
            return match there.filter(|container| container.phase == Phase::Failed.as_str()) {
                Some(failed) => Err(ApiError::Refused(format!(
                    "{name} is unchanged, but failed on {owner} ({}): `ha-manager restore {name}` tries again",
                    failed.notes.join("; ")
                ))),
                None => Ok(json!({"message": format!("{name} is unchanged"), "changed": false})),
            };
        }
        let here = self.name();
        Err(ApiError::Refused(format!(
            "{name} runs on {owner} and this changes it: apply it there, or `ha-manager move {name} --to {here}` first"
        )))
    }

    /// Registers and starts a container, or takes over what changed of one that runs here.
    pub async fn apply(
        self: &Arc<Self>,
        spec: ContainerSpec,
        image: ImageRecord,
        recreate: bool,
        progress: ProgressSender,
    ) -> Result<Value, ApiError> {
        let name = spec.name.clone();
        self.check_address(&spec).await?;
        if !self.has(&name) {
            self.not_being_begun(&name).await?;
        }
        let newest = apps::newest(&self.ctx.store, &name).await.map_err(unavailable)?;
        let generation = newest.as_ref().map_or(0, |app| app.generation);
        let old = newest.and_then(|app| app.content);
        let content = AppContent { spec, image };
        if let Some(old) = old {
            let same = old == content || only_policy_differs(&old, &content);
            let down = self.view(&name).filter(|view| matches!(view.phase, Phase::Failed | Phase::Stopped));
            let failed = down.as_ref().is_some_and(|view| view.phase == Phase::Failed);
            // What has no snapshots begins anew from its image in any case; as it was described, with its volumes as they are.
            let stateless = matches!(old.spec.state, StateKind::Stateless);
            let never_ran = failed && !(stateless && same) && self.has_no_snapshot(&name).await?;
            let replace = never_ran || recreate && (down.is_some() || !same);
            if !replace && self.has(&name) {
                if !same && down.is_none() {
                    let what = format!(
                        "{name} runs already and this change needs a new container, which loses its state: apply with --recreate, \
                         or remove it first with `ha-manager rm {name}`"
                    );
                    return Err(ApiError::Refused(what));
                }
                if let Some(view) = down.as_ref().filter(|_| !(failed && same)) {
                    let (phase, why) = (view.phase.as_str(), view.failure.clone().unwrap_or_default());
                    return Err(ApiError::Refused(format!(
                        "{name} is {phase}: {why}. `ha-manager restore {name}` puts it back to its last snapshot; apply with \
                         --recreate begins it anew"
                    )));
                }
                let changed = old != content;
                if changed {
                    let app = self.register(generation, content).await?;
                    self.tell(&app).await;
                }
                return match (down, changed) {
                    (Some(failed), _) => self.try_again(&name, failed.failure.unwrap_or_default(), progress).await,
                    (None, true) => {
                        Ok(json!({"message": format!("{name} updated; it goes on running"), "changed": true}))
                    }
                    (None, false) => Ok(json!({"message": format!("{name} is unchanged"), "changed": false})),
                };
            }
            self.order(&name, Order::Remove, progress.clone()).await?;
        }
        let newest = apps::newest(&self.ctx.store, &name).await.map_err(unavailable)?;
        self.create(newest.map_or(0, |app| app.generation), content, progress).await
    }

    /// A failed container whose description is what it was: brought up as by `restore`.
    async fn try_again(&self, name: &ContainerName, why: String, progress: ProgressSender) -> Result<Value, ApiError> {
        progress.step(format!("{name} had failed: {why}"));
        let order = Order::Restore { snapshot: None, discard: false };
        match self.order(name, order, progress).await {
            Ok(mut done) => {
                done["changed"] = json!(true);
                Ok(done)
            }
            Err(ApiError::NotFound(none)) => Err(ApiError::Refused(format!(
                "{name} is failed: {why}; and {none}. `ha-manager restore {name} --snapshot ID` goes back to one of them all the \
                 same; apply with --recreate begins it anew"
            ))),
            Err(error) => Err(error),
        }
    }

    async fn create(
        self: &Arc<Self>,
        generation: u64,
        content: AppContent,
        progress: ProgressSender,
    ) -> Result<Value, ApiError> {
        let name = content.spec.name.clone();
        for needed in &content.spec.depends_on {
            self.wait_for(needed, &progress).await?;
        }
        let begun = self.stopping.may_begin().await.map_err(ApiError::Unavailable)?;
        let identity = self.identity(&content).await.map_err(address_refused)?;
        let app = self.register(generation, content.clone()).await?;
        self.layers_are_there(&content).await?;
        let store = &self.ctx.store;
        let held = ownership::current(store, &name).await.map_err(|err| ApiError::Unavailable(crate::chain(&err)))?;
        let claimant = Claimant::new(self.name().clone());
        let held = match held {
            // A removal that was interrupted: what was committed then must not count for this container.
            Some(owner) if !owner.released => match ownership::release(store, &name, owner.epoch, &claimant).await {
                Ok(Claim::Won(owner)) => Some(owner),
                Ok(Claim::Lost(other)) => {
                    return Err(ApiError::Refused(format!(
                        "{name} was started on node {} at the same time",
                        other.node
                    )));
                }
                Err(err) => return Err(ApiError::failed(&err)),
            },
            held => held,
        };
        let expected: Option<Epoch> = held.map(|owner| owner.epoch);
        let claim = ownership::claim(store, &name, expected, &claimant).await.map_err(|err| ApiError::failed(&err))?;
        let owner = match claim {
            Claim::Won(owner) => owner,
            Claim::Lost(other) => {
                return Err(ApiError::Refused(format!("{name} was started on node {} at the same time", other.node)));
            }
        };
        ownership::take_base(store, &name, &owner).await.map_err(|err| ApiError::failed(&err))?;
        let (reply, outcome) = oneshot::channel();
        if !self.start(app, content, owner, identity, Begin::Cold { progress, reply }) {
            return Err(ApiError::Refused(format!("{name} is being started here already")));
        }
        drop(begun);
        outcome
            .await
            .map_err(|_| ApiError::Failed(format!("{name}: the start was given up; see `ha-manager events {name}`")))?
    }

    /// True when nothing would be lost by beginning anew. A snapshot that cannot be read here is one, too.
    async fn has_no_snapshot(&self, name: &ContainerName) -> Result<bool, ApiError> {
        let known = crate::snapshot::list(&self.ctx.store, name).await;
        Ok(known.map_err(|error| ApiError::Unavailable(crate::chain(&error)))?.is_empty())
    }

    async fn import(
        &self,
        spec: &ContainerSpec,
        base_dir: &std::path::Path,
        progress: &ProgressSender,
    ) -> Result<ImageRecord, ApiError> {
        let source = image::classify(&spec.image, base_dir).map_err(|err| ApiError::Invalid(crate::chain(&err)))?;
        let options = image::ImportOptions::new(self.ctx.config.state_dir.join("import"));
        let (shown, name) = (progress.clone(), spec.name.clone());
        let show: image::Progress = Arc::new(move |event| show(&shown, &name, event));
        let imported = image::import(&source, &spec.image, &self.ctx.store, &options, &show).await;
        imported.map_err(|err| ApiError::failed(&err))
    }

    /// From here on nobody takes the image's layers for unused; before, somebody may have.
    async fn layers_are_there(&self, content: &AppContent) -> Result<(), ApiError> {
        for layer in &content.image.layers {
            let key = image::blob_key(&layer.digest);
            if self.ctx.store.head(&key).await.map_err(unavailable)? != Some(layer.size_bytes) {
                return Err(ApiError::Failed(format!(
                    "{}: a layer of its image is no longer in the store ({key}); apply again",
                    content.spec.name
                )));
            }
        }
        Ok(())
    }

    async fn register(&self, generation: u64, content: AppContent) -> Result<App, ApiError> {
        let name = content.spec.name.clone();
        match apps::put(&self.ctx.store, &name, generation, Some(content)).await.map_err(unavailable)? {
            PutApp::Stored(_) => {}
            PutApp::Conflict(_) => {
                return Err(ApiError::Refused(format!(
                    "{name} was changed by somebody else at the same time; apply again"
                )));
            }
        }
        let app = apps::newest(&self.ctx.store, &name).await.map_err(unavailable)?;
        app.ok_or_else(|| ApiError::Failed(format!("{name}: the store lost what was just written to it")))
    }

    async fn tell(&self, app: &App) {
        let Some(content) = &app.content else { return };
        let inbox = self.actors().get(&content.spec.name).map(|actor| actor.inbox.clone());
        if let Some(inbox) = inbox {
            // An actor that ends just now has nothing to update.
            let _ = inbox.send(Command::Update(Box::new(app.clone()))).await;
        }
    }

    /// Waits until a container that another one depends on runs or is healthy, as is asked for, anywhere.
    async fn wait_for(&self, dependency: &Dependency, progress: &ProgressSender) -> Result<(), ApiError> {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);
        let needed = &dependency.name;
        progress.step(format!("waiting for {needed}"));
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let status = crate::api::gather_status(self, false).await;
            let known = status.containers.iter().find(|container| container.name == needed.as_str());
            if known.is_none_or(|container| matches!(container.phase.as_str(), "failed" | "stopped" | "unknown")) {
                let what = known.map_or("is not there".to_owned(), |container| format!("is {}", container.phase));
                return Err(ApiError::Refused(format!(
                    "{needed}, which this container depends on, {what}: bring it up first (`ha-manager status`)"
                )));
            }
            let ready = status.containers.iter().any(|container| {
                container.name == needed.as_str()
                    && matches!(container.phase.as_str(), "running" | "checkpointing")
                    && match dependency.condition {
                        Condition::Started => true,
                        // Its healthcheck may have been taken away since: then there is nothing to wait for.
                        Condition::Healthy => matches!(container.health.as_str(), "healthy" | "none"),
                    }
            });
            if ready {
                return Ok(());
            }
            if std::time::Instant::now() > deadline {
                return Err(ApiError::Refused(format!(
                    "{needed}, which this container depends on, {} after {PATIENCE:?}",
                    match dependency.condition {
                        Condition::Started => "does not run",
                        Condition::Healthy => "is not healthy",
                    }
                )));
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }
}

/// True when the running container can go on as it is under the new description.
fn only_policy_differs(old: &AppContent, new: &AppContent) -> bool {
    let mut adjusted = old.spec.clone();
    adjusted.keep = new.spec.keep;
    adjusted.keep_manual = new.spec.keep_manual;
    adjusted.recovery = new.spec.recovery.clone();
    adjusted.depends_on = new.spec.depends_on.clone();
    let same_kind = std::mem::discriminant(&old.spec.state) == std::mem::discriminant(&new.spec.state);
    if same_kind {
        adjusted.state = new.spec.state;
    }
    old.image == new.image && adjusted == new.spec
}

fn unavailable(error: StoreError) -> ApiError {
    ApiError::Unavailable(crate::chain(&error))
}

fn show(progress: &ProgressSender, name: &ContainerName, event: image::Event) {
    use image::Event::{Converting, Fetching, Note, Pulling, Ready, Stored, Unpacking};
    let of = |layer: usize, layers: usize| format!("{name}: layer {layer} of {layers}");
    match event {
        Pulling { layer, layers, bytes, of: total } => {
            progress.bytes(format!("{}: pulling", of(layer, layers)), bytes, total)
        }
        Converting { layer, layers } => progress.step(format!("{}: converting", of(layer, layers))),
        Stored { layer, layers, uploaded: true, .. } => progress.step(format!("{}: stored", of(layer, layers))),
        Stored { layer, layers, .. } => progress.step(format!("{}: in the store already", of(layer, layers))),
        Fetching { layer, layers, .. } => progress.step(format!("{}: fetching", of(layer, layers))),
        Unpacking { layer, layers } => progress.step(format!("{}: unpacking", of(layer, layers))),
        Ready { layer, layers, .. } => progress.step(format!("{}: ready", of(layer, layers))),
        Note { text } => progress.step(format!("{name}: {text}")),
    }
}
