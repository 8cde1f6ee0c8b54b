import { render } from "preact";
import "./style/base.css";
import "./style/layout.css";
import "./style/list.css";
import "./style/messages.css";
import "./style/prose.css";
import "./style/windows.css";
import { t } from "./language";
import { loadList, openFromAddress } from "./state/chats";
import { tell } from "./state/notices";
import { connect } from "./state/server";
import { App } from "./view/App";

addEventListener("unhandledrejection", ({ reason }) => tell(t("error.unexpected", { reason: String(reason) }), true));
addEventListener("popstate", () => void openFromAddress());
addEventListener("hashchange", () => void openFromAddress());

render(<App />, document.body);
void connect();
void loadList();
void openFromAddress();
