import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { t } from "../language";
import { current, path, sentCount } from "../state/chats";
import { Answer } from "./Answer";
import { Asked } from "./Asked";
import { IconButton } from "./parts";

const NEAR = 80; // pixels from the end within which the page follows a growing answer

export function Thread() {
  const place = useRef<HTMLDivElement>(null);
  const isAtEnd = useSignal(true);
  const toEnd = (behavior: ScrollBehavior = "auto") =>
    place.current?.scrollTo({ top: place.current.scrollHeight, behavior });
  useEffect(() => {
    isAtEnd.value = true;
    toEnd();
  }, [current.value?.id, sentCount.value]);
  useLayoutEffect(() => {
    if (isAtEnd.peek()) toEnd();
  }, [path.value]);
  useEffect(() => {
    // Formulas and windows change heights without a new message.
    const observer = new ResizeObserver(() => isAtEnd.peek() && toEnd());
    observer.observe(place.current!.firstElementChild!);
    observer.observe(place.current!);
    return () => observer.disconnect();
  }, []);
  return (
    <div class="thread-place">
      <div
        class="thread"
        ref={place}
        tabIndex={-1}
        onScroll={({ currentTarget: { scrollHeight, scrollTop, clientHeight } }) => {
          isAtEnd.value = scrollHeight - scrollTop - clientHeight < NEAR;
        }}
      >
        <div class="thread-inside" role="log" aria-live="off" aria-label={t("thread")}>
          {path.value.map((each) =>
            each.role === "user" ? <Asked key={each.id} message={each} /> : <Answer key={each.id} message={each} />,
          )}
        </div>
      </div>
      {!isAtEnd.value && <IconButton icon="down" class="latest" label={t("latest")} onClick={() => toEnd("smooth")} />}
    </div>
  );
}
