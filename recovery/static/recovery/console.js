/* What the console does beyond links and forms; every page works without it. */

"use strict";

(() => {
    const charts = new Map();

    /* Live pages: <main data-live-page data-every-s="5"> holds parts with data-live names. The page is
       fetched again and parts that differ are replaced; focus, open details and scroll stay. */
    const TOKENS = /name="csrfmiddlewaretoken" value="[^"]*"/g;
    const was = new WeakMap();
    const live = () => document.querySelector("[data-live-page]");
    const PATIENCE_MS = 15_000;
    let timer = null;

    async function refresh() {
        const page = live();
        if (!page || document.hidden) return;
        try {
            const answer = await fetch(page.dataset.livePage || location.href, {
                headers: { "X-Requested-With": "XMLHttpRequest" },
                credentials: "same-origin",
                redirect: "manual",
                signal: AbortSignal.timeout(PATIENCE_MS),
            });
            if (answer.type === "opaqueredirect" || answer.status === 403) return ended(page);
            if (!answer.ok) return tell(page, page.dataset.lost, true);
            replace(page, new DOMParser().parseFromString(await answer.text(), "text/html"));
            tell(page, "", false);
        } catch {
            tell(page, page.dataset.lost, true);
        }
    }

    function ended(page) {
        tell(page, page.dataset.ended, true);
        stop();
    }

    function stop() {
        clearInterval(timer);
        timer = null;
    }

    function tell(page, text, bad) {
        const place = page.querySelector("[data-live-state]");
        if (!place || place.textContent === text) return;
        place.textContent = text;
        place.className = bad ? "notice bad" : "";
    }

    function replace(page, fresh) {
        for (const part of page.querySelectorAll("[data-live]")) {
            const other = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
            if (!other || isRead(part)) continue;
            const now = other.innerHTML.replace(TOKENS, "");
            if (now === (was.get(part) ?? part.innerHTML.replace(TOKENS, ""))) continue;
            const place = placeIn(part);
            const open = new Set([...part.querySelectorAll("details[open]")].map(nameOf));
            was.set(part, now);
            part.innerHTML = other.innerHTML;
            for (const it of part.querySelectorAll("details")) it.open = it.open || open.has(nameOf(it));
            if (place) refocus(part, place);
        }
        for (const box of fresh.querySelectorAll("[data-chart]")) {
            const mine = document.getElementById(box.id);
            if (mine) draw(mine, box.dataset.chart);
        }
        if (page.dataset.livePage !== undefined) {
            const every = fresh.querySelector("[data-live-page]");
            if (every && every.dataset.everyS === "0") stop();
        }
    }

    const nameOf = (details) => details.dataset.name || details.querySelector("summary")?.textContent;

    /* Somebody is selecting text here, or types. */
    function isRead(part) {
        const selection = getSelection();
        const selects = !selection.isCollapsed && part.contains(selection.anchorNode);
        const types = part.contains(document.activeElement) && /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
        return selects || types;
    }

    function placeIn(part) {
        const it = document.activeElement;
        if (!it || it === document.body || !part.contains(it)) return null;
        const same = [...part.querySelectorAll(it.tagName)].filter((other) => keyOf(other) === keyOf(it));
        return { tag: it.tagName, key: keyOf(it), nth: same.indexOf(it) };
    }

    const keyOf = (it) => it.id || it.getAttribute("href") || it.value || it.textContent;

    function refocus(part, place) {
        const same = [...part.querySelectorAll(place.tag)].filter((it) => keyOf(it) === place.key);
        (same[place.nth] || same[0])?.focus({ preventScroll: true });
    }

    /* Charts: <div id data-chart="{labels, sets: [{label, data}]}"> drawn by the skin's Chart.js. */
    function draw(box, text) {
        if (typeof Chart === "undefined") return;
        const content = JSON.parse(text);
        const colours = inks();
        const sets = content.sets.map((set, nth) => ({
            label: set.label,
            data: set.data,
            borderColor: colours.lines[nth % colours.lines.length],
            backgroundColor: colours.lines[nth % colours.lines.length],
            borderDash: nth % 2 ? [5, 3] : [],
            borderWidth: 2,
            pointRadius: 0,
            spanGaps: false,
            tension: 0,
        }));
        const known = charts.get(box.id);
        if (known && known.canvas.isConnected) {
            known.data.labels = content.labels;
            known.data.datasets.forEach((set, nth) => Object.assign(set, sets[nth]));
            known.update("none");
            return;
        }
        const canvas = document.createElement("canvas");
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", box.dataset.says || "");
        box.replaceChildren(canvas);
        charts.set(box.id, new Chart(canvas, {
            type: "line",
            data: { labels: content.labels, datasets: sets },
            options: {
                animation: false,
                maintainAspectRatio: false,
                interaction: { mode: "index", intersect: false },
                plugins: { legend: { display: sets.length > 1, labels: { color: colours.ink, boxWidth: 24, boxHeight: 2 } } },
                scales: {
                    x: { ticks: { color: colours.ink, maxTicksLimit: 6, maxRotation: 0 }, grid: { color: colours.grid } },
                    y: { beginAtZero: true, ticks: { color: colours.ink, maxTicksLimit: 5 }, grid: { color: colours.grid } },
                },
            },
        }));
    }

    function inks() {
        const dark = document.documentElement.classList.contains("dark");
        return dark
            ? { ink: "#d6dae2", grid: "#3b4250", lines: ["#8ab6ff", "#ffb86b", "#7fd8a4", "#ff9c9c"] }
            : { ink: "#465062", grid: "#dfe3ea", lines: ["#1d5fd0", "#b05a00", "#1c7a44", "#b3261e"] };
    }

    const drawAll = () => document.querySelectorAll("[data-chart]").forEach((box) => draw(box, box.dataset.chart));

    function redraw() {
        charts.forEach((chart) => chart.destroy());
        charts.clear();
        drawAll();
    }

    /* Copy buttons, and buttons that may be pressed once. */
    document.addEventListener("click", async (event) => {
        const button = event.target.closest("[data-copy]");
        if (!button) return;
        event.preventDefault();
        await write(button.dataset.copy);
        const text = button.textContent;
        button.textContent = button.dataset.copied;
        setTimeout(() => { button.textContent = text; }, 1500);
    });

    async function write(text) {
        if (navigator.clipboard) return navigator.clipboard.writeText(text);
        const area = document.createElement("textarea"); // without HTTPS there is no clipboard
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }

    document.addEventListener("submit", (event) => {
        if (!event.target.matches("[data-once]")) return;
        for (const button of event.target.querySelectorAll("button[type=submit]")) {
            setTimeout(() => { button.disabled = true; });
        }
    });
    window.addEventListener("pageshow", () => {
        document.querySelectorAll("[data-once] button[disabled]").forEach((it) => { it.disabled = false; });
    });

    /* The skin's icons that are clicked are not buttons: the keyboard reaches them here. */
    function reachable() {
        const icons = document.querySelectorAll("#page [x-on\\:click]:is(span, h2, a, div.cursor-pointer):not([href])");
        for (const it of icons) {
            it.setAttribute("role", "button");
            it.tabIndex = 0;
            const name = { dock_to_right: "menu", close: "menu" }[it.textContent.trim()];
            if (name) it.setAttribute("aria-label", document.documentElement.lang.startsWith("zh") ? "菜单" : "Menu");
            it.addEventListener("keydown", (event) => {
                if (event.key !== "Enter" && event.key !== " ") return;
                event.preventDefault();
                it.click();
            });
        }
    }

    /* The skin hides the page until its scripts run, so the browser could not give the focus. */
    document.addEventListener("alpine:initialized", () => requestAnimationFrame(() => {
        if (document.activeElement === document.body) document.querySelector("[autofocus]")?.focus();
    }));

    document.addEventListener("DOMContentLoaded", () => {
        reachable();
        drawAll();
        const every = Number(live()?.dataset.everyS || 0);
        if (every) timer = setInterval(refresh, every * 1000);
        new MutationObserver(redraw).observe(document.documentElement, { attributes: true, attributeFilter: ["class"] });
    });
    document.addEventListener("visibilitychange", () => { if (!document.hidden && timer) refresh(); });
})();
