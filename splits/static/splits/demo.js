// Keep the figures and stories fresh; a server that is gone is said, and asked again.
const live = document.getElementById("live");

// Nothing is replaced under the reader's hands: text being copied, a link about to be followed.
function inUse() {
  const marked = document.getSelection();
  const copying = marked && !marked.isCollapsed && live.contains(marked.anchorNode);
  return copying || live.contains(document.activeElement);
}

async function refresh() {
  try {
    const answer = await fetch(live.dataset.source, { cache: "no-store" });
    if (answer.ok) {
      const text = await answer.text();
      if (!inUse()) live.innerHTML = text;
    }
    live.classList.toggle("gone", !answer.ok);
  } catch {
    live.classList.add("gone");
  }
  setTimeout(refresh, live.dataset.refreshS * 1000);
}

setTimeout(refresh, live.dataset.refreshS * 1000);
