// Names what Gradio leaves without a name for screen readers: the progress of a job, and the pictures of results.
() => {
  const name = () => {
    document.querySelectorAll('.block.progress:not([role])').forEach((line) => line.setAttribute('role', 'status'));
    document.querySelectorAll('.framed').forEach((frame) => {
      const title = frame.querySelector('label')?.textContent.trim() || 'result';
      frame.querySelectorAll('img:not([alt]), img[alt=""]').forEach((image) => { image.alt = title; });
    });
  };
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
  name();
}
