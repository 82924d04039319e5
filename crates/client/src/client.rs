//! The front door: a cluster, its sessions, and handles on its scopes.

use std::time::Duration;

use tropism_placement::Durability;
use tropism_wire::{from_proto, v1};

use crate::calls::Calls;
use crate::connection::Nodes;
use crate::error::Error;
use crate::route::NodeView;
use crate::scope::Scope;
use crate::session::Session;

/// A cluster, as an application uses it. Cheap to clone; clones share connections and session.
///
/// ```no_run
/// # #[derive(Default, serde::Serialize, serde::Deserialize)]
/// # struct Cart { items: Vec<String> }
/// # async fn example() -> Result<(), tropism_client::Error> {
/// use tropism_client::{Client, Durability, Session};
///
/// let tropism = Client::connect(["http://10.0.0.1:7000", "http://10.0.1.1:7000"]).await?;
/// let carts = tropism.scope("shop/carts")?.with_durability(Durability::Regions(2));
/// carts.update("alice", |cart: &mut Cart| cart.items.push("tea".to_owned())).await?;
///
/// // Somewhere else, perhaps in another region: what was written here is read there.
/// let text = tropism.session().to_string();
/// let there = tropism.resume(&text.parse::<Session>()?);
/// let cart: Option<Cart> = there.scope("shop/carts")?.get("alice").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    calls: Calls,
}

impl Client {
    /// A client of the cluster that these nodes (`http://host:port`, 1 to [`crate::MAX_ENDPOINTS`]) belong to. Asks all of
    /// them at once and talks to the first that answers. Needs a runtime of tokio.
    ///
    /// Errors: [`Error::BadEndpoint`] before anything is sent; [`Error::Unreachable`] when none answers within
    /// [`crate::DEFAULT_TIMEOUT`].
    pub async fn connect<Seed: Into<String>>(seeds: impl IntoIterator<Item = Seed>) -> Result<Self, Error> {
        let nodes = Nodes::new(seeds.into_iter().map(Into::into).collect(), false)?;
        Ok(Self { calls: Calls::nearest(nodes).await? })
    }

    /// A client whose distances are measured in a hurry.
    #[cfg(test)]
    pub(crate) async fn in_a_hurry(seeds: Vec<String>) -> Result<Self, Error> {
        Ok(Self { calls: Calls::nearest(Nodes::new(seeds, false)?.at_speed(50)).await? })
    }

    /// The same with another time for each call, its retries included. Nodes shorten it to 60 s.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { calls: self.calls.with_timeout(timeout) }
    }

    /// The same with another durability of writes, instead of what the scopes' policies say.
    #[must_use]
    pub fn with_durability(self, durability: Durability) -> Self {
        Self { calls: self.calls.with_durability(Some(durability)) }
    }

    /// A handle on a scope. Asks nobody: a scope begins with its first write, if a rule matches its name.
    ///
    /// Errors: [`Error::Refused`] with `BAD_SCOPE` when the name breaks the grammar.
    pub fn scope(&self, name: &str) -> Result<Scope, Error> {
        from_proto::scope_name("scope", name).map_err(Error::Refused)?;
        Ok(Scope::new(self.calls.clone(), name))
    }

    /// The session so far: what was written and read through this client, its clones and their scopes.
    pub fn session(&self) -> Session {
        Session::new(self.calls.token())
    }

    /// A client that goes on with a session from elsewhere, over the same connections. Nothing is sent; a session of
    /// another cluster is refused by the first call (`BAD_TOKEN`).
    #[must_use]
    pub fn resume(&self, session: &Session) -> Self {
        let calls = self.calls.new_session();
        calls.set_token(session.token().clone());
        Self { calls }
    }

    /// A client with a new session, over the same connections: for work that must not wait for what this one saw.
    #[must_use]
    pub fn with_new_session(&self) -> Self {
        Self { calls: self.calls.new_session() }
    }

    /// What this client knows of the nodes: how far each is from here, and which is asked. Asks nobody.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.calls.nodes.view()
    }

    /// The region whose node is asked where nothing speaks against it; none before that node has said who it is.
    pub fn region(&self) -> Option<String> {
        self.nodes().into_iter().find(|node| node.chosen).and_then(|node| node.region)
    }

    /// The regions, and the round trips between them, as the answering node knows them.
    pub async fn regions(&self) -> Result<v1::ListRegionsResponse, Error> {
        self.calls.regions().await
    }

    /// The calls of the protocol by scope and key, with all that they answer, in this client's session.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }
}
